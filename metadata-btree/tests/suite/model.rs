//! Many trees that share nodes, against ordinary maps, through commits, reopenings and crashes.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use metadata_btree::{Btree, MemStore, Transaction, Value, View};

use crate::forest::{DiskRef, Forest, Plain, Rng};
use crate::guard::GuardStore;
use crate::recount::recount;

const METADATA_BLOCKS: u64 = 3000;
const DISK_BLOCKS: u64 = 40_000;
const TREES_MAX: usize = 12;

type Model = BTreeMap<u64, BTreeMap<u64, (u64, u64)>>;

struct Run {
    store: GuardStore,
    forest: Forest,
    rng: Rng,
    model: Model,
    committed: Model,
    /// Views of earlier commits, with what they must show and the blocks they need.
    views: Vec<(View, Btree<crate::forest::TreeRef>, Model, Vec<u64>)>,
    reachable: Vec<u64>,
    next_name: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let store = GuardStore::new(MemStore::new(METADATA_BLOCKS));
        let forest = Forest::format(Arc::new(store.clone()), DISK_BLOCKS);
        let mut run = Self {
            store,
            forest,
            rng: Rng::new(seed),
            model: Model::new(),
            committed: Model::new(),
            views: Vec::new(),
            reachable: Vec::new(),
            next_name: 0,
        };
        run.forest.tx.set_dirty_nodes_max(20);
        run.commit();
        run
    }

    fn step(&mut self) {
        let name = self.some_name();
        match (self.rng.below(100), name) {
            (0..6, _) if self.model.len() < TREES_MAX => self.create(),
            (6..14, Some(name)) if self.model.len() < TREES_MAX => self.snapshot(name),
            (14..17, Some(name)) => {
                self.forest.delete(name).unwrap();
                self.model.remove(&name);
            }
            (17..22, _) => self.commit(),
            (22, _) => self.crash(),
            (23, _) => self.abort(),
            (24..26, _) if self.views.len() < 3 => self.take_view(),
            (26..28, _) if !self.views.is_empty() => {
                let index = self.rng.below(self.views.len() as u64);
                self.views.remove(usize::try_from(index).unwrap());
                self.protect();
            }
            (28..60, Some(name)) => self.put_run(name),
            (60..80, Some(name)) => self.put_scattered(name),
            (80..90, Some(name)) => self.remove_range(name),
            (90.., Some(name)) => self.remove_some(name),
            _ => {}
        }
        self.compare(name);
    }

    fn some_name(&mut self) -> Option<u64> {
        let index = self.rng.below(self.model.len().max(1) as u64);
        self.model
            .keys()
            .nth(usize::try_from(index).unwrap())
            .copied()
    }

    fn create(&mut self) {
        self.forest.create(self.next_name).unwrap();
        self.model.insert(self.next_name, BTreeMap::new());
        self.next_name += 1;
    }

    fn snapshot(&mut self, origin: u64) {
        self.forest.snapshot(origin, self.next_name).unwrap();
        self.model
            .insert(self.next_name, self.model[&origin].clone());
        self.next_name += 1;
    }

    fn put(&mut self, name: u64, key: u64) {
        let (block, note) = (self.rng.below(DISK_BLOCKS), self.rng.below(9));
        self.forest.put(name, key, block, note).unwrap();
        self.model
            .get_mut(&name)
            .unwrap()
            .insert(key, (block, note));
    }

    fn put_run(&mut self, name: u64) {
        let (start, len) = (self.rng.below(6000), self.rng.below(400));
        (start..start + len).for_each(|key| self.put(name, key));
    }

    fn put_scattered(&mut self, name: u64) {
        for _ in 0..self.rng.below(60) {
            let key = self.rng.below(8000);
            self.put(name, key);
        }
    }

    fn remove_range(&mut self, name: u64) {
        let start = self.rng.below(8000);
        let end = start
            + self
                .rng
                .below([10, 1000, 9000][usize::try_from(start % 3).unwrap()]);
        let tree = self.model.get_mut(&name).unwrap();
        let before = tree.len();
        tree.retain(|key, _| !(start..end).contains(key));
        let expected = (before - tree.len()) as u64;
        let removed = self
            .forest
            .change(name, |tree, tx| tree.remove_range(tx, start..end));
        assert_eq!(removed.unwrap(), expected);
    }

    fn remove_some(&mut self, name: u64) {
        for _ in 0..self.rng.below(100) {
            let near = self.rng.below(8000);
            let tree = self.model.get_mut(&name).unwrap();
            let key = tree.range(near..).next().map_or(near, |(&key, _)| key);
            let expected = tree
                .remove(&key)
                .map(|(block, note)| DiskRef { block, note });
            let removed = self
                .forest
                .change(name, |tree, tx| tree.remove(tx, key))
                .unwrap();
            assert_eq!(removed, expected);
        }
    }

    fn commit(&mut self) {
        self.forest.commit().unwrap();
        self.committed = self.model.clone();
        let image = self.store.memory().to_image();
        let recount = recount(&image);
        assert_eq!(recount.counts.len() as u64, self.blocks_in_use());
        let flat = |tree: &BTreeMap<u64, (u64, u64)>| -> Vec<_> {
            tree.iter()
                .map(|(&key, &(block, note))| (key, block, note))
                .collect()
        };
        let expected: BTreeMap<_, _> = self.model.iter().map(|(&n, t)| (n, flat(t))).collect();
        assert_eq!(recount.trees, expected);
        self.reachable = recount.counts.keys().copied().collect();
        self.protect();
    }

    fn blocks_in_use(&self) -> u64 {
        self.forest.tx.metadata_blocks() - self.forest.tx.free_metadata_blocks()
    }

    fn protect(&self) {
        let viewed = self
            .views
            .iter()
            .flat_map(|(.., blocks)| blocks.iter().copied());
        self.store
            .protect(viewed.chain(self.reachable.iter().copied()));
    }

    fn crash(&mut self) {
        self.views.clear();
        self.forest = Forest::open(Arc::new(self.store.clone())).unwrap();
        self.restart();
    }

    fn abort(&mut self) {
        // The place needs a forest meanwhile; any will do.
        let other = Forest::format(Arc::new(MemStore::new(100)), 0);
        let forest = std::mem::replace(&mut self.forest, other);
        self.forest = forest.reopen().unwrap();
        self.restart();
    }

    fn restart(&mut self) {
        self.forest.tx.set_dirty_nodes_max(20);
        self.model = self.committed.clone();
        self.protect();
        let names: Vec<_> = self.model.keys().copied().collect();
        names.into_iter().for_each(|name| self.compare(Some(name)));
    }

    fn take_view(&mut self) {
        self.commit();
        let view = self.forest.tx.view();
        self.views.push((
            view,
            self.forest.top,
            self.model.clone(),
            self.reachable.clone(),
        ));
        self.protect();
    }

    fn compare(&mut self, name: Option<u64>) {
        if let Some((name, model)) = name.and_then(|name| Some((name, self.model.get(&name)?))) {
            assert_eq!(&list(&self.forest.tree(name), &self.forest.tx), model);
        }
        if self.rng.below(10) > 0 {
            return;
        }
        for (view, top, model, _) in &self.views {
            for (&name, model) in model {
                let root = top.lookup(view, name).unwrap().unwrap().0;
                assert_eq!(&list(&Btree::from_root(root), view), model);
            }
        }
    }
}

fn list(
    tree: &Btree<DiskRef>,
    source: &impl metadata_btree::NodeSource,
) -> BTreeMap<u64, (u64, u64)> {
    let mut entries = BTreeMap::new();
    tree.for_each(source, .., &mut |key, value| {
        assert!(entries.last_key_value().is_none_or(|(&last, _)| last < key));
        entries.insert(key, (value.block, value.note));
        ControlFlow::Continue(())
    })
    .unwrap();
    entries
}

#[test]
fn trees_agree_with_maps() {
    for seed in 1..=6 {
        println!("seed {seed}");
        let mut run = Run::new(seed);
        for _ in 0..250 {
            run.step();
        }
        run.views.clear();
        let names: Vec<_> = run.model.keys().copied().collect();
        for name in names {
            run.forest.delete(name).unwrap();
            run.model.remove(&name);
        }
        run.commit();
        assert_eq!(run.forest.tx.disk_allocated(), 0);
    }
}

fn agrees_for_size<V: Value + std::fmt::Debug>(make: impl Fn(u32) -> V, seed: u64) {
    let store = MemStore::new(2000);
    let mut tx = Transaction::format(Arc::new(store), 2000, 0).unwrap();
    let mut tree = Btree::<V>::empty(&mut tx).unwrap();
    let mut model = BTreeMap::new();
    let mut rng = Rng::new(seed);
    for round in 0..3000u32 {
        let key = rng.below(1500) * (u64::MAX / 1499);
        match rng.below(if round < 1500 { 4 } else { 2 }) {
            0 => assert_eq!(tree.remove(&mut tx, key).unwrap(), model.remove(&key)),
            1 if round % 50 == 0 => {
                let end = key.saturating_add(u64::MAX / 20);
                let before = model.len();
                model.retain(|k, _| !(key..=end).contains(k));
                let removed = tree.remove_range(&mut tx, key..=end).unwrap();
                assert_eq!(removed, (before - model.len()) as u64);
            }
            _ => {
                let value = make(round);
                assert_eq!(
                    tree.insert(&mut tx, key, value).unwrap(),
                    model.insert(key, value)
                );
            }
        }
        assert_eq!(tree.lookup(&tx, key).unwrap(), model.get(&key).copied());
    }
    let mut expected = model.into_iter();
    tree.for_each(&tx, .., &mut |key, value| {
        assert_eq!(expected.next(), Some((key, value)));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(expected.next(), None);
}

#[test]
fn every_value_size_agrees_with_a_map() {
    for seed in 1..4 {
        agrees_for_size(Plain::<4>, seed);
        agrees_for_size(Plain::<8>, seed);
        agrees_for_size(Plain::<16>, seed);
        agrees_for_size(Plain::<24>, seed);
    }
}
