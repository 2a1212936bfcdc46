//! A small user of the crate: a tree of named trees whose values are references to disk blocks.
//!
//! Block 0 holds the two space maps at offsets 64 and 192 and the root of the tree of trees at 320.

use std::sync::Arc;

use metadata_btree::{
    Block, BlockNr, BlockStore, Btree, Error, SpaceMapRoot, SpaceMapRoots, Transaction, Value,
};

/// Numbers that look random and are the same in every run with one seed.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

/// A reference to a disk block, with a note in the low bits that does not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskRef {
    pub block: u64,
    pub note: u64,
}

impl Value for DiskRef {
    const SIZE: usize = 8;

    fn decode(bytes: &[u8]) -> Self {
        let field = u64::from_le_bytes(bytes.try_into().unwrap());
        Self {
            block: field >> 24,
            note: field & 0xFF_FFFF,
        }
    }

    fn encode(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&(self.block << 24 | self.note).to_le_bytes());
    }

    fn inc(&self, tx: &mut Transaction) -> Result<(), Error> {
        tx.disk_inc(self.block)
    }

    fn dec(&self, tx: &mut Transaction) -> Result<(), Error> {
        tx.disk_dec(self.block)
    }

    fn same_target(&self, other: &Self) -> bool {
        self.block == other.block
    }
}

/// The root of a named tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TreeRef(pub BlockNr);

impl Value for TreeRef {
    const SIZE: usize = 8;

    fn decode(bytes: &[u8]) -> Self {
        Self(BlockNr(u64::from_le_bytes(bytes.try_into().unwrap())))
    }

    fn encode(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0.0.to_le_bytes());
    }

    fn inc(&self, tx: &mut Transaction) -> Result<(), Error> {
        tx.inc(self.0)
    }

    fn dec(&self, tx: &mut Transaction) -> Result<(), Error> {
        Btree::<DiskRef>::from_root(self.0).drop_tree(tx)
    }
}

/// A value of any size that counts nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plain<const SIZE: usize>(pub u32);

impl<const SIZE: usize> Value for Plain<SIZE> {
    const SIZE: usize = SIZE;

    fn decode(bytes: &[u8]) -> Self {
        assert_eq!(bytes.len(), SIZE);
        Self(u32::from_le_bytes(bytes[SIZE - 4..].try_into().unwrap()))
    }

    fn encode(&self, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), SIZE);
        bytes[SIZE - 4..].copy_from_slice(&self.0.to_le_bytes());
    }
}

pub struct Forest {
    pub tx: Transaction,
    pub top: Btree<TreeRef>,
}

impl Forest {
    pub fn format(store: Arc<dyn BlockStore>, disk_blocks: u64) -> Self {
        let blocks = store.block_count().unwrap();
        let mut tx = Transaction::format(store, blocks, disk_blocks).unwrap();
        let top = Btree::empty(&mut tx).unwrap();
        Self { tx, top }
    }

    pub fn open(store: Arc<dyn BlockStore>) -> Result<Self, Error> {
        let (roots, top) = superblock(&store);
        Ok(Self {
            tx: Transaction::open(store, roots)?,
            top,
        })
    }

    /// Forgets what was not committed; views stay.
    pub fn reopen(self) -> Result<Self, Error> {
        let (roots, top) = superblock(self.tx.store());
        Ok(Self {
            tx: self.tx.reopen(roots)?,
            top,
        })
    }

    pub fn commit(&mut self) -> Result<(), Error> {
        let top = self.top.root();
        self.tx.commit(|roots| {
            let mut block = Block::zeroed();
            roots.disk.encode(&mut block.as_bytes_mut()[64..]);
            roots.metadata.encode(&mut block.as_bytes_mut()[192..]);
            block.as_bytes_mut()[320..328].copy_from_slice(&top.0.to_le_bytes());
            Ok(block)
        })
    }

    pub fn create(&mut self, name: u64) -> Result<(), Error> {
        let tree = Btree::<DiskRef>::empty(&mut self.tx)?;
        self.top.insert(&mut self.tx, name, TreeRef(tree.root()))?;
        Ok(())
    }

    pub fn tree(&self, name: u64) -> Btree<DiskRef> {
        Btree::from_root(self.top.lookup(&self.tx, name).unwrap().unwrap().0)
    }

    pub fn snapshot(&mut self, origin: u64, name: u64) -> Result<(), Error> {
        let root = self.tree(origin).root();
        self.tx.inc(root)?;
        self.top.insert(&mut self.tx, name, TreeRef(root))?;
        Ok(())
    }

    /// Runs a change of one named tree and stores its new root.
    ///
    /// The tree of trees is made changeable first, as it names the root that will move.
    pub fn change<T>(
        &mut self,
        name: u64,
        change: impl FnOnce(&mut Btree<DiskRef>, &mut Transaction) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let old = self.top.lookup(&self.tx, name)?.expect("the tree exists");
        // Takes over the reference of the entry: the value is the same, so nothing is counted,
        // and a shared leaf of the tree of trees is copied here, before its roots move.
        self.top.replace(&mut self.tx, name, old)?;
        let mut tree = Btree::from_root(old.0);
        let result = change(&mut tree, &mut self.tx)?;
        self.rename(name, old, tree)?;
        Ok(result)
    }

    fn rename(&mut self, name: u64, old: TreeRef, new: Btree<DiskRef>) -> Result<(), Error> {
        if new.root() == old.0 {
            return Ok(());
        }
        self.top_as_moved()
            .replace(&mut self.tx, name, MovedRef(new.root()))?;
        Ok(())
    }

    fn top_as_moved(&self) -> Btree<MovedRef> {
        Btree::from_root(self.top.root())
    }

    pub fn put(&mut self, name: u64, key: u64, block: u64, note: u64) -> Result<(), Error> {
        self.tx.disk_inc(block)?;
        let replaced = self.change(name, |tree, tx| {
            tree.insert(tx, key, DiskRef { block, note })
        })?;
        if replaced.is_some_and(|old| old.block == block) {
            // Nothing was replaced as far as counts go, so the reference just made is one too many.
            self.tx.disk_dec(block)?;
        }
        Ok(())
    }

    pub fn delete(&mut self, name: u64) -> Result<(), Error> {
        self.top
            .remove(&mut self.tx, name)?
            .expect("the tree exists");
        Ok(())
    }
}

fn superblock(store: &Arc<dyn BlockStore>) -> (SpaceMapRoots, Btree<TreeRef>) {
    let mut block = Block::zeroed();
    store.read(BlockNr(0), &mut block).unwrap();
    let bytes = block.as_bytes();
    let roots = SpaceMapRoots {
        disk: SpaceMapRoot::decode(&bytes[64..]),
        metadata: SpaceMapRoot::decode(&bytes[192..]),
    };
    let top = u64::from_le_bytes(bytes[320..328].try_into().unwrap());
    (roots, Btree::from_root(BlockNr(top)))
}

/// A root that moved by shadowing: the entry's reference went along, so nothing is counted.
#[derive(Clone, Copy, PartialEq)]
struct MovedRef(BlockNr);

impl Value for MovedRef {
    const SIZE: usize = 8;

    fn decode(bytes: &[u8]) -> Self {
        Self(TreeRef::decode(bytes).0)
    }

    fn encode(&self, bytes: &mut [u8]) {
        TreeRef(self.0).encode(bytes);
    }

    fn same_target(&self, _other: &Self) -> bool {
        true
    }
}
