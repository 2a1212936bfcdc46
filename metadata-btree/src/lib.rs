//! Copy-on-write B+trees and reference counts on a metadata device; a commit is all or nothing.
//!
//! The format is that of dm-thin metadata, version 2, byte for byte. This crate knows its blocks,
//! checksums, tree nodes and space maps, but not what the trees are for: a caller brings the
//! superblock and the meaning of values ([`Value`]).
//!
//! A [`Transaction`] owns the changes since the last commit. A [`Btree`] is a handle by which it
//! changes a tree. A [`View`] reads the last commit, from any thread and at any time. Everything
//! is synchronous; there are no threads and no clock in here.
//!
//! Reading order: `block.rs`, `node.rs`, `transaction/shadow.rs`, `btree/`, `commit.rs` (the
//! order of writes), `version.rs` (when freed blocks are reused), `space_map/metadata.rs` (the
//! space map that counts itself).
//!
//! ```
//! use std::sync::Arc;
//! use metadata_btree::{Block, BlockNr, Btree, Error, MemStore, SpaceMapRoots, Transaction, Value};
//!
//! #[derive(Clone, Copy, Debug, PartialEq)]
//! struct Number(u64);
//!
//! impl Value for Number {
//!     const SIZE: usize = 8;
//!     fn decode(bytes: &[u8]) -> Self {
//!         Self(bytes.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte)))
//!     }
//!     fn encode(&self, bytes: &mut [u8]) {
//!         bytes.copy_from_slice(&self.0.to_le_bytes());
//!     }
//! }
//!
//! # fn main() -> Result<(), Error> {
//! let store = MemStore::new(128);
//! let mut tx = Transaction::format(Arc::new(store.clone()), 128, 1000)?;
//! let mut tree = Btree::empty(&mut tx)?;
//! tree.insert(&mut tx, 7, Number(49))?;
//! let mut committed = None;
//! tx.commit(|roots: &SpaceMapRoots| {
//!     committed = Some(*roots); // A real superblock keeps these, and the tree's root.
//!     Ok(Block::zeroed())
//! })?;
//! drop(tx);
//!
//! let tx = Transaction::open(Arc::new(store), committed.expect("commit asked for a superblock"))?;
//! assert_eq!(tree.lookup(&tx.view(), 7)?, Some(Number(49)));
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod block;
mod btree;
mod cache;
mod checksum;
mod codec;
mod commit;
mod error;
mod node;
mod num;
mod open;
mod source;
mod space_map;
mod store;
mod transaction;
mod version;

pub use block::{BLOCK_SIZE, Block, BlockNr, BlockStore};
pub use btree::{Btree, TreeBuilder};
pub use cache::CACHE_BYTES;
pub use checksum::BlockKind;
pub use codec::Value;
pub use error::{BlockCheck, Error};
pub use source::NodeSource;
pub use space_map::{METADATA_BLOCKS_MAX, SpaceMapRoot, SpaceMapRoots};
pub use store::{FileStore, MemStore};
pub use transaction::Transaction;
pub use version::View;
