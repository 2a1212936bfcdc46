//! What is done with a pool that could be opened: all that its owner would do, in small.

use std::sync::Arc;

use metadata_check::{CheckOptions, DumpOptions, Report, check, dump};
use pool::{DeviceInfo, DeviceKind, Error, ErrorKind, ExtentState, INCOMPAT_LOG, Mode, Pool};
use reactor::block_on;

use crate::machine::{Host, Image, Machine};
use crate::pools::new;

/// Devices that are looked at, and changed.
const DEVICES_MAX: usize = 4;
/// Extents that are asked for at a time.
const EXTENTS_MAX: usize = 16;
/// With larger data blocks nothing is written: filling one in would take all the memory.
const WRITTEN_BLOCK_BYTES_MAX: u64 = 1 << 20;

/// Whether errors are allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// The metadata is damaged: anything may fail, nothing may panic.
    Damaged,
    /// The metadata is sound: nothing fails but for want of space.
    Sound,
}

impl Trust {
    /// The value, if there is one.
    pub fn expect<T>(self, what: &str, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(cause) if self == Trust::Sound && !is_for_want_of_space(&cause) => {
                panic!("sound metadata, and {what} fails: {cause:?}")
            }
            Err(_) => None,
        }
    }
}

fn is_for_want_of_space(cause: &Error) -> bool {
    cause.kind() == ErrorKind::NoSpace
}

/// Checks metadata, of which a log may hold more.
pub fn checked(metadata: &Image) -> Report {
    let options = CheckOptions {
        allowed_incompat: INCOMPAT_LOG,
        ..CheckOptions::default()
    };
    check(metadata, &options)
}

/// The metadata's dump, if it can be made.
pub fn dumped(metadata: &Image) -> Option<String> {
    let mut text = Vec::new();
    dump(metadata, &DumpOptions::default(), &mut text).ok()?;
    Some(String::from_utf8(text).expect("a dump is text"))
}

/// Uses, changes and closes a pool; of a sound one the metadata must be sound afterwards.
pub fn use_and_close(machine: &Machine, pool: &Arc<Pool<Host>>, trust: Trust) {
    let devices = pool.devices();
    for device in devices.iter().take(DEVICES_MAX) {
        look_at(pool, device, trust);
    }
    let may_change = pool.status().mode == Mode::Write;
    if !may_change {
        let _closed = block_on(pool.close());
        return;
    }
    for device in devices.iter().take(DEVICES_MAX) {
        change(pool, device, trust);
    }
    trust.expect("committing", block_on(pool.commit()));
    trust.expect("usage", block_on(pool.usage()));
    if let Some(last) = devices.last() {
        trust.expect("deleting", block_on(pool.remove(&last.name)));
        trust.expect("reclaiming", block_on(pool.reclaim()));
    }
    let is_closed = trust.expect("closing", block_on(pool.close())).is_some();
    if is_closed && trust == Trust::Sound {
        let report = checked(&machine.contents().metadata);
        assert!(
            report.is_sound(),
            "it was sound before it was used: {:#?}",
            report.findings
        );
    }
}

/// Reads the beginning and the end of a device, and asks what is where.
fn look_at(pool: &Arc<Pool<Host>>, info: &DeviceInfo, trust: Trust) {
    let Some(device) = trust.expect("opening a device", pool.open_device(&info.name)) else {
        return;
    };
    for at in [0, info.size.saturating_sub(8192)] {
        let len = info.size - at;
        let mut bytes = vec![0; usize::try_from(len.min(8192)).unwrap()];
        trust.expect("reading", block_on(device.read(at, &mut bytes)));
        let asked = len.min(1 << 30);
        let extents = block_on(device.extents(at, asked, EXTENTS_MAX));
        if let Some(extents) = trust.expect("asking for extents", extents) {
            let total: u64 = extents.iter().map(|extent| extent.len).sum();
            assert!(total <= asked, "extents beyond the range: {extents:?}");
        }
    }
}

/// Writes to a volume, takes a snapshot of it, and discards.
fn change(pool: &Arc<Pool<Host>>, info: &DeviceInfo, trust: Trust) {
    let block_bytes = pool.status().block_size;
    let is_writable = info.kind == DeviceKind::Volume && !info.read_only;
    if !is_writable || block_bytes > WRITTEN_BLOCK_BYTES_MAX {
        return;
    }
    let Some(device) = trust.expect("opening a volume", pool.open_device(&info.name)) else {
        return;
    };
    let len = info.size.min(4096);
    let data = vec![0x5a; usize::try_from(len).unwrap()];
    let mut found = vec![0; data.len()];
    if trust
        .expect("writing", block_on(device.write(0, &data, false)))
        .is_some()
        && trust
            .expect("reading", block_on(device.read(0, &mut found)))
            .is_some()
    {
        assert!(found == data, "what was written is not what is read");
    }
    let snapshot = new(&format!("{}@fuzz", info.name.volume_part()));
    match block_on(pool.create_snapshots(vec![snapshot])) {
        Err(Error::Exists(_)) => {}
        taken => drop(trust.expect("taking a snapshot", taken)),
    }
    let at = info.size.saturating_sub(len);
    trust.expect("writing", block_on(device.write(at, &data, true)));
    let discarded = block_on(device.discard(0, info.size.min(4 * block_bytes), false));
    trust.expect("discarding", discarded);
}

/// Fails unless every run of mappings that a dump has can be found in the open pool.
pub fn expect_mappings(pool: &Arc<Pool<Host>>, dump: &str) {
    let block_bytes = pool.status().block_size;
    let mut device = None;
    for line in dump.lines().map(str::trim_start) {
        if line.starts_with("<device ") {
            let id = attribute(line, "dev_id");
            let found = pool
                .devices()
                .into_iter()
                .find(|info| u64::from(info.id) == id);
            let found = found.unwrap_or_else(|| panic!("device {id} of the dump is not there"));
            device = Some(pool.open_device(&found.name).unwrap());
            continue;
        }
        let begin = match line.split_once(' ') {
            Some(("<single_mapping", _)) => attribute(line, "origin_block"),
            Some(("<range_mapping", _)) => attribute(line, "origin_begin"),
            _ => continue,
        };
        let device = device.as_ref().expect("mappings belong to a device");
        let at = begin.saturating_mul(block_bytes);
        if at >= device.size() {
            continue;
        }
        let extents = block_on(device.extents(at, 1, 1)).unwrap();
        let is_mapped = matches!(
            extents[0].state,
            ExtentState::Exclusive | ExtentState::Shared
        );
        assert!(is_mapped, "{line} is a hole of {}", device.name());
    }
}

fn attribute(line: &str, key: &str) -> u64 {
    let (_, rest) = line.split_once(&format!(" {key}=\"")).unwrap();
    rest.split('"').next().unwrap().parse().unwrap()
}
