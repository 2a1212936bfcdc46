//! What the simulator sees and breaks in the engine.
//!
//! *Marks* say that a rare branch was taken: a simulator that never takes it proves nothing about it.
//! *Sabotage* makes the engine wrong in one known way: a simulator that does not notice is worth nothing.
//!
//! Both belong to the calling thread, since a simulated pool runs on one. Without the feature `on`, which only
//! the simulator sets, [`mark`] does nothing and [`is_sabotaged`] is a constant.

#![forbid(unsafe_code)]

#[cfg(all(feature = "on", not(debug_assertions)))]
compile_error!(
    "the feature `on` of the crate `probe` is for tests: it must not be in a release build"
);

macro_rules! names {
    ($(#[$doc:meta])* $kind:ident { $($(#[$of:meta])* $name:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $kind { $($(#[$of])* $name,)* }

        impl $kind {
            /// All there are.
            pub const ALL: &[$kind] = &[$($kind::$name,)*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $($kind::$name => stringify!($name),)* }
            }
        }
    };
}

names! {
    /// A rare branch.
    Mark {
        /// A root without room got a level below it.
        RootSplit,
        /// A node without room became two.
        NodeSplit,
        /// Two nodes became one.
        NodesMerged,
        /// Two nodes shared their entries anew.
        NodesBalanced,
        /// A root with one child gave way to it.
        RootCollapsed,
        /// A node that others share was given up.
        SharedNodeDropped,
        /// A data block got its third reference.
        OverflowCount,
        /// A data block lost its third reference.
        OverflowCountGone,
        /// A write got no block, and committed for one.
        CommitForSpace,
        /// A piece of a deletion was done.
        DeletionPiece,
        /// There was no space for a write.
        OutOfDataSpace,
        /// A write waited for space.
        WriteQueued,
        /// Only the reserve of metadata was left.
        OutOfMetadataSpace,
        /// A generation of the log began while a record was permitted.
        SwitchWithRecordsToCome,
        /// The log had an empty slot before a full one.
        EmptySlot,
        /// The log was replayed as far as a marker goes.
        ReplayToMarker,
        /// The log was replayed whole, with records of two generations.
        ReplayTwoGenerations,
        /// A marker was there, and not all that it says.
        IncompleteMarker,
        /// The log was void.
        VoidLog,
        /// A daemon's term of the log began behind records of the one before.
        TermBesideAnother,
        /// The log had records of a daemon that did not come to the end of taking it over.
        TermGivenUp,
        /// There was no space to take the log over.
        NoSpaceToTakeOver,
        /// A replay mapped a block and replaced it.
        ReplaySuperseded,
        /// A partial block could not be filled in, and its volume was left out of a commit.
        VolumeLeftOut,
        /// A partial block was given up while its filling in waited for it.
        FillInTooLate,
        /// A write found a block whole that was partial when it looked.
        WholeMeanwhile,
        /// A commit was served by another's.
        CommitJoined,
        /// A flush was served by another's.
        FlushJoined,
        /// A commit had nothing to write but an entry in the log.
        NothingToCommit,
        /// A commit failed.
        CommitFailed,
        /// Lines of the catalog that no commit covers were cut off.
        CatalogCut,
        /// A catalog of unknown end was written anew.
        CatalogMended,
        /// What a volume's last block hid was zeroed before it was enlarged.
        HiddenTailZeroed,
        /// A write waited for freed blocks, and perhaps their readers.
        BlockAwaitedReaders,
    }
}

names! {
    /// A known bug.
    Sabotage {
        /// A commit does not sync the data store.
        SkipDataSync,
        /// The superblock is written before what it names is durable.
        SuperblockFirst,
        /// A block freed since the last commit is handed out again.
        ReuseFreed,
        /// Of several mappings that are removed at once only the first gives its reference back.
        ForgetDecrement,
        /// The rest of a new block is what it was.
        SkipZeroing,
        /// A snapshot does not wait for the writes under way.
        SnapshotWithoutDrain,
        /// A flush relies on one that began before it.
        EarlyFlush,
        /// The space of unmapped blocks is given back before the commit.
        EarlyDiscard,
        /// Records are still in the daemon's memory when requests are answered.
        LateRecord,
        /// A sync of the log that failed is tried again.
        RetriedSync,
        /// The log's marker is durable before the data it speaks of.
        EarlyMarker,
        /// A commit does not begin a generation of the log.
        StaleGeneration,
        /// The rest of a partial block is not filled in.
        SkipFill,
        /// Changes of mappings are not recorded.
        SkipRecord,
        /// The log is taken over under the number of a daemon that did not come to the end of that.
        ReusedTerm,
    }
}

#[cfg(feature = "on")]
mod on {
    use std::cell::{Cell, RefCell};

    use super::{Mark, Sabotage};

    thread_local! {
        static HITS: RefCell<Vec<u64>> = RefCell::new(vec![0; Mark::ALL.len()]);
        static SABOTAGE: Cell<Option<Sabotage>> = const { Cell::new(None) };
    }

    /// Counts a mark.
    pub fn mark(mark: Mark) {
        HITS.with_borrow_mut(|hits| hits[mark as usize] += 1);
    }

    /// Whether the engine is to have this bug.
    pub fn is_sabotaged(sabotage: Sabotage) -> bool {
        SABOTAGE.get() == Some(sabotage)
    }

    /// Gives the engine one bug, or none, on this thread.
    pub fn set_sabotage(sabotage: Option<Sabotage>) {
        SABOTAGE.set(sabotage);
    }

    /// How often each mark was hit on this thread since this was asked last, in the order of [`Mark::ALL`].
    pub fn take_hits() -> Vec<u64> {
        HITS.with_borrow_mut(|hits| std::mem::replace(hits, vec![0; Mark::ALL.len()]))
    }
}

#[cfg(feature = "on")]
pub use on::{is_sabotaged, mark, set_sabotage, take_hits};

/// Does nothing.
#[cfg(not(feature = "on"))]
#[inline(always)]
pub const fn mark(_: Mark) {}

/// Never.
#[cfg(not(feature = "on"))]
#[inline(always)]
pub const fn is_sabotaged(_: Sabotage) -> bool {
    false
}
