//! What one task at a time changes: the open transaction and the catalog's file.

use std::collections::BTreeSet;
use std::sync::Arc;

use probe::{Mark, mark};

use crate::catalog::{Catalog, CatalogStore, Loaded, Operation, thin_id};
use crate::error::{Error, is_full};
use crate::history::History;
use crate::log::{Durable, IntentLog, log_error};
use crate::metadata::{Change, Metadata};
use crate::units::{DataBlock, ThinId};

/// What an operation does to the metadata.
pub(crate) type MetadataChange = Box<dyn FnOnce(&mut Metadata) -> Result<(), Error> + Send>;

/// A change of names or devices, to be done in one transaction.
pub(crate) struct Control {
    /// What it does to the catalog: already known to make sense.
    pub(crate) operations: Vec<Operation>,
    /// What it does to the metadata.
    pub(crate) change: MetadataChange,
}

impl Control {
    /// A piece of a deletion, which has been done already, and perhaps was the last.
    pub(crate) fn reclaimed(id: ThinId, gone: bool) -> Self {
        Self::catalog_only(if gone {
            vec![Operation::Reclaimed { id: id.get() }]
        } else {
            Vec::new()
        })
    }

    /// The end of the intent log: nothing is to be recorded any more.
    pub(crate) fn end_of_log() -> Self {
        Control {
            operations: Vec::new(),
            change: Box::new(|metadata| {
                metadata.set_has_log(false);
                Ok(())
            }),
        }
    }

    /// A change of the catalog alone.
    pub(crate) fn catalog_only(operations: Vec<Operation>) -> Self {
        Control {
            operations,
            change: Box::new(|_| Ok(())),
        }
    }
}

/// Owner of the metadata and the catalog.
pub(crate) struct Writer {
    pub(crate) metadata: Metadata,
    pub(crate) catalog: Catalog,
    file: Box<dyn CatalogStore>,
    log: Arc<IntentLog>,
    pub(crate) history: History,
    lines: usize,
    /// The bytes of these lines. What lies behind them never happened.
    len: u64,
    /// Whether there may be something behind them.
    has_unfinished: bool,
    /// Whether the lines do not say what the catalog is.
    is_outdated: bool,
    /// Ids in the metadata, those of devices being deleted included.
    pub(crate) ids: BTreeSet<ThinId>,
}

/// What became of a commit that is durable.
pub(crate) struct Done {
    /// Data blocks that no mapping names any more.
    pub(crate) freed: Vec<DataBlock>,
    /// Whether the control operation was done; it is not when the catalog could not be written.
    pub(crate) control: Result<(), Error>,
}

impl Writer {
    /// Over metadata and the catalog's content that belongs to it.
    pub(crate) fn new(
        metadata: Metadata,
        loaded: Loaded,
        file: Box<dyn CatalogStore>,
        log: Arc<IntentLog>,
        history: History,
        ids: BTreeSet<ThinId>,
    ) -> Self {
        Writer {
            metadata,
            catalog: loaded.catalog,
            file,
            log,
            history,
            lines: loaded.lines,
            len: loaded.len,
            has_unfinished: loaded.has_unfinished,
            is_outdated: loaded.is_changed,
            ids,
        }
    }

    /// An id that no device has.
    pub(crate) fn unused_id(&self, also_taken: usize) -> Result<ThinId, Error> {
        let also_taken = u32::try_from(also_taken).unwrap_or(u32::MAX);
        let above = self.ids.last().map_or(0, |last| last.get() + 1);
        if let Some(id) = above.checked_add(also_taken).and_then(ThinId::new) {
            return Ok(id);
        }
        let all = (0..=ThinId::MAX.get()).filter_map(ThinId::new);
        let mut free = all.filter(|id| !self.ids.contains(id));
        free.nth(also_taken as usize).ok_or(Error::OutOfIds)
    }

    /// One transaction: changed mappings, none younger than `time`, then the control operation;
    /// durable when this returns success. The data store must have been synced after the changes
    /// were collected, and after the records of `durable` were made, in the generation that this commit
    /// does not end. After an error the metadata is in an unknown state, and the last commit stands.
    pub(crate) fn commit(
        &mut self,
        changes: &[(ThinId, Vec<Change>)],
        time: u32,
        durable: Durable,
        control: Option<Control>,
    ) -> Result<Done, Error> {
        let mut outcome = Ok(());
        let control = control.and_then(|control| {
            outcome = self.record(&control.operations);
            outcome.is_ok().then_some(control)
        });
        self.metadata.raise_time(time);
        if self.log.create_if_wanted().map_err(log_error)? {
            self.metadata.set_has_log(true);
        }
        for (id, changes) in changes {
            self.metadata.apply(*id, changes)?;
        }
        if let Some(control) = control {
            (control.change)(&mut self.metadata)?;
            if !control.operations.is_empty() {
                self.metadata.raise_transaction_id();
            }
            for operation in &control.operations {
                self.catalog.apply(operation)?;
                if let Operation::Reclaimed { id } = operation {
                    self.ids.remove(&thin_id(*id)?);
                }
            }
        }
        self.metadata
            .commit(|superblock| self.log.prepare(superblock, durable))?;
        self.history.keep(&self.metadata.superblock().block());
        if !self.metadata.superblock().has_log {
            // Nothing else knows it.
            self.history.sync();
        }
        self.log.note_announced(self.metadata.superblock().has_log);
        let freed = self.metadata.transaction().take_freed();
        if self.catalog.wants_compaction(self.lines) {
            // Without it the file merely stays longer than it need be.
            let _ = self.rewrite();
        }
        Ok(Done {
            freed: freed.into_iter().map(DataBlock).collect(),
            control: outcome,
        })
    }

    /// Makes the lines of an operation durable, before the commit they belong to.
    fn record(&mut self, operations: &[Operation]) -> Result<(), Error> {
        if operations.is_empty() {
            return Ok(());
        }
        self.mend()?;
        let transaction_id = self.metadata.superblock().transaction_id.wrapping_add(1);
        let lines = Catalog::encode_operations(operations, transaction_id);
        self.append(&lines)?;
        self.len += lines.len() as u64;
        self.lines += operations.len();
        Ok(())
    }

    /// As `mend`; for what lacks space now, the next change of the catalog has to find it.
    pub(crate) fn mend_if_there_is_space(&mut self) -> Result<(), Error> {
        match self.mend() {
            Err(cause) if cause.is_full() => Ok(()),
            mended => mended,
        }
    }

    /// Makes the file say what the catalog is, and nothing more. Only when devices have come or gone without its
    /// knowledge does that take space.
    pub(crate) fn mend(&mut self) -> Result<(), Error> {
        if self.is_outdated {
            mark(Mark::CatalogMended);
            self.rewrite()
        } else if self.has_unfinished {
            mark(Mark::CatalogMended);
            self.append(&[])
        } else {
            Ok(())
        }
    }

    fn append(&mut self, lines: &[u8]) -> Result<(), Error> {
        self.has_unfinished = true;
        self.file
            .append(self.len, lines)
            .map_err(catalog_error("appending to"))?;
        self.has_unfinished = false;
        Ok(())
    }

    fn rewrite(&mut self) -> Result<(), Error> {
        let content = self
            .catalog
            .encode(self.metadata.superblock().transaction_id);
        let replaced = self.file.replace(&content);
        // Otherwise it is not known which of the two is there.
        self.is_outdated |= replaced.as_ref().is_err_and(|cause| !is_full(cause));
        replaced.map_err(catalog_error("rewriting"))?;
        self.lines = content.iter().filter(|byte| **byte == b'\n').count();
        self.len = content.len() as u64;
        self.has_unfinished = false;
        self.is_outdated = false;
        Ok(())
    }
}

fn catalog_error(doing: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io {
        what: format!("{doing} the catalog"),
        source,
    }
}
