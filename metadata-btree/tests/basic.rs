//! The first promises: what was committed can be opened again, what was not is gone.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]
use std::sync::Arc;

use metadata_btree::{Block, Btree, MemStore, SpaceMapRoots, Transaction, Value};

#[derive(Clone, Copy, PartialEq, Debug)]
struct Number(u64);

impl Value for Number {
    const SIZE: usize = 8;

    fn decode(bytes: &[u8]) -> Self {
        Self(u64::from_le_bytes(bytes.try_into().unwrap()))
    }

    fn encode(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0.to_le_bytes());
    }
}

fn commit(tx: &mut Transaction) -> SpaceMapRoots {
    let mut committed = None;
    tx.commit(|roots| {
        committed = Some(*roots);
        Block::zeroed()
    })
    .unwrap();
    committed.unwrap()
}

#[test]
fn commit_survives_and_the_rest_does_not() {
    let store = MemStore::new(4096);
    let mut tx = Transaction::format(Arc::new(store.clone()), 4096, 50_000).unwrap();
    let mut tree = Btree::empty(&mut tx).unwrap();
    for key in 0..20_000 {
        assert_eq!(
            tree.insert(&mut tx, key * 7919 % 20_011, Number(key))
                .unwrap(),
            None
        );
    }
    let roots = commit(&mut tx);
    let committed = tree;
    tree.insert(&mut tx, 3, Number(0)).unwrap();
    tree.remove_range(&mut tx, 100..15_000).unwrap();
    drop(tx);

    let mut tx = Transaction::open(Arc::new(store), roots).unwrap();
    for key in 0..20_000 {
        let found = committed.lookup(&tx, key * 7919 % 20_011).unwrap();
        assert_eq!(found, Some(Number(key)));
    }
    let mut tree = committed;
    assert!(tree.remove_range(&mut tx, ..).unwrap() == 20_000);
    commit(&mut tx);
    assert_eq!(tree.lookup(&tx.view(), 7).unwrap(), None);
}
