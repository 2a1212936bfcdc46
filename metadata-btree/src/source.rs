//! Where a tree reads its nodes: the last commit through a view, or the open transaction.

use std::ops::Deref;
use std::sync::Arc;

use crate::block::{Block, BlockNr};
use crate::error::Error;
use crate::transaction::Transaction;
use crate::version::View;

/// Something that trees can be read from: a [`Transaction`], which sees its own changes, or a
/// [`View`], which sees one commit. Only these two implement it.
pub trait NodeSource: ReadNode {}

impl NodeSource for Transaction {}
impl NodeSource for View {}

/// The method behind [`NodeSource`], out of reach of other crates.
pub trait ReadNode {
    /// A verified node.
    ///
    /// # Errors
    /// When the block cannot be read or is not a node.
    fn read_node(&self, nr: BlockNr) -> Result<NodeGuard<'_>, Error>;
}

/// A node for as long as it is being read.
pub enum NodeGuard<'a> {
    /// Changed in the open transaction.
    Dirty(&'a Block),
    /// As on the store.
    Clean(Arc<Block>),
}

impl Deref for NodeGuard<'_> {
    type Target = Block;

    fn deref(&self) -> &Block {
        match self {
            Self::Dirty(block) => block,
            Self::Clean(block) => block,
        }
    }
}
