//! Making a pool larger.

use std::sync::Arc;

use metadata_btree::{BLOCK_SIZE, METADATA_BLOCKS_MAX};

use crate::error::Error;
use crate::host::{DataIo, Host};
use crate::metadata::{self, COUNTS_A_BITMAP};
use crate::pool::Pool;
use crate::writer::Control;

impl<H: Host> Pool<H> {
    /// Makes the pool use `bytes` of its data store, which must be that large already.
    pub async fn grow_data(self: &Arc<Self>, bytes: u64) -> Result<(), Error> {
        let present = self.data.size().map_err(|source| Error::Io {
            what: "reading the size of the data store".into(),
            source,
        })?;
        let writer = self.writer_for_change().await?;
        let blocks = bytes / self.block_size.bytes();
        let before = self.allocator.lock().total();
        check_growth(
            "the data store",
            bytes,
            before * self.block_size.bytes(),
            present,
        )?;
        self.check_room_for_bitmaps(blocks - before)?;
        let control = Control {
            operations: Vec::new(),
            change: Box::new(move |metadata| Ok(metadata.transaction().grow_disk(blocks)?)),
        };
        let begun = self.begin_commit();
        let publish = || self.allocator.lock().grow(blocks);
        self.finish_commit(writer, begun, Some(control), publish)
            .await?;
        self.queue.note_space();
        Ok(())
    }

    /// Refuses a growth whose bitmaps would eat up the metadata: one block for 16320.
    fn check_room_for_bitmaps(&self, added: u64) -> Result<(), Error> {
        let total = self.metadata_room.total();
        let free = self.metadata_room.free();
        let needed = added / COUNTS_A_BITMAP + added / COUNTS_A_BITMAP / 64 + 16;
        if needed > free.saturating_sub(metadata::reserve(total)) {
            return Err(Error::OutOfMetadataSpace);
        }
        Ok(())
    }

    /// Makes the pool use `bytes` of its metadata store, which must be that large already. What
    /// exceeds the format's limit, 15.875 GiB, is not used.
    pub async fn grow_metadata(self: &Arc<Self>, bytes: u64) -> Result<(), Error> {
        let present = self.store.block_count().map_err(|source| Error::Io {
            what: "reading the size of the metadata store".into(),
            source,
        })?;
        let writer = self.writer_for_change().await?;
        let block_size = BLOCK_SIZE as u64;
        let before = self.metadata_room.total();
        let blocks = (bytes / block_size).min(METADATA_BLOCKS_MAX);
        check_growth(
            "the metadata store",
            blocks * block_size,
            before * block_size,
            present.saturating_mul(block_size),
        )?;
        let control = Control {
            operations: Vec::new(),
            change: Box::new(move |metadata| Ok(metadata.transaction().grow_metadata(blocks)?)),
        };
        let begun = self.begin_commit();
        self.finish_commit(writer, begun, Some(control), || ())
            .await
    }
}

fn check_growth(store: &'static str, wanted: u64, before: u64, present: u64) -> Result<(), Error> {
    if wanted <= before {
        return Err(Error::BadValue {
            what: "the new size",
            found: format!("{wanted} bytes"),
            expected: format!("more than the {before} bytes in use; a pool cannot shrink"),
        });
    }
    if present < wanted {
        return Err(Error::StoreTooShort {
            store,
            found: present,
            expected: wanted,
        });
    }
    Ok(())
}
