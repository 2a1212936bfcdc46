//! What tests of single situations begin with, and how they look at what came of it.

use std::fmt::Display;
use std::sync::Arc;

use pool::{BlockSize, DeviceName, Identity, NewDevice, Pool};

use crate::Prng;
use crate::executor::block_on;
use crate::image::expect_sound;
use crate::sim::{Geometry, Machine, SimHost, to_usize};

/// The name of a volume or snapshot.
///
/// # Panics
/// When it is none.
pub fn name(text: &str) -> DeviceName {
    match text.parse() {
        Ok(name) => name,
        Err(cause) => panic!("{text}: {cause}"),
    }
}

/// A device to be made, with a UUID that follows from its name.
///
/// # Panics
/// When it cannot be called that.
pub fn new(text: impl Display) -> NewDevice {
    let text = text.to_string();
    NewDevice {
        name: name(&text),
        identity: Identity {
            uuid: format!("uuid of {text}"),
            created: String::new(),
        },
    }
}

/// Stores with so many data blocks, and metadata enough for them.
pub fn geometry(data_blocks: u64) -> Geometry {
    Geometry {
        data_blocks,
        metadata_blocks: 700,
    }
}

/// A machine with an empty pool of so many data blocks.
///
/// # Panics
/// When the pool cannot be formatted.
pub fn machine(data_blocks: u64) -> Machine {
    Machine::new(geometry(data_blocks), Prng::new(1))
}

/// All bytes of a device.
///
/// # Panics
/// When it cannot be read.
pub fn read_all(pool: &Arc<Pool<SimHost>>, name: &DeviceName) -> Vec<u8> {
    let device = match pool.open_device(name) {
        Ok(device) => device,
        Err(cause) => panic!("{name} does not open: {cause}"),
    };
    let mut bytes = vec![0; to_usize(device.size())];
    let read = block_on(device.read(0, &mut bytes));
    assert!(read.is_ok(), "{name} cannot be read: {read:?}");
    bytes
}

/// Fails unless a device begins with these bytes, each so many times, and is zero from there on.
///
/// # Panics
/// When it holds something else.
pub fn expect_runs(pool: &Arc<Pool<SimHost>>, name: &DeviceName, runs: &[(u8, usize)]) {
    let bytes = read_all(pool, name);
    let (mut at, mut rest) = (0, bytes.as_slice());
    for (expected, len) in runs.iter().copied().chain([(0, usize::MAX)]) {
        let (run, after) = rest.split_at(len.min(rest.len()));
        for (found, at) in run.iter().zip(at..) {
            assert_eq!(*found, expected, "byte {at} of {name}");
        }
        at += run.len();
        rest = after;
    }
}

/// With nothing in flight: commits, reclaims, and fails unless the metadata is sound and the pool's
/// count of used blocks is what it says.
///
/// # Panics
/// When anything is wrong.
pub fn expect_true_space(machine: &Machine, pool: &Arc<Pool<SimHost>>) {
    let reclaimed = block_on(pool.reclaim());
    assert!(reclaimed.is_ok(), "cannot reclaim: {reclaimed:?}");
    let committed = block_on(pool.commit());
    assert!(committed.is_ok(), "cannot commit: {committed:?}");
    let status = pool.status();
    let block = BlockSize::DEFAULT.bytes();
    let used = expect_sound(&machine.metadata.image(), status.data_total_bytes / block);
    assert_eq!(status.data_used_bytes / block, used, "blocks used");
}
