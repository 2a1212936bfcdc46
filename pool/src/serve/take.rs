//! Taking free data blocks that are sure of their space.

use std::io;

use crate::allocator::Fresh;
use crate::error::{Error, is_full};
use crate::host::{DataIo, Host};
use crate::pool::Pool;
use crate::serve::data_error;
use crate::units::ThinId;

/// How much of the data store is asked for at once, in bytes.
const DRAW_BYTES: u64 = 1024 * 1024;

/// How many blocks are tried while the data store has no space.
const FULL_TRIES: usize = 16;

impl<H: Host> Pool<H> {
    /// Takes a free data block for a device, which can be written without lack of space on the data store.
    ///
    /// # Errors
    /// As [`Pool::ready_block`].
    pub(super) async fn take_block(&self, owner: ThinId) -> Result<Fresh, Error> {
        loop {
            if let Some(fresh) = self.allocator.lock().take(owner) {
                return Ok(fresh);
            }
            self.ready_block(Some(owner)).await?;
        }
    }

    /// Sees to it that there is a block for a device to take, or for any, of whose space the data store is
    /// sure.
    ///
    /// # Errors
    /// [`Error::OutOfDataSpace`] when no block is free, [`Error::DataStoreFull`] when there is no space
    /// for it.
    pub(super) async fn ready_block(&self, owner: Option<ThinId>) -> Result<(), Error> {
        let _drawing = self.drawing.acquire().await;
        match self.make_ready(owner).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::OutOfDataSpace),
            Err(source) if is_full(&source) => Err(Error::DataStoreFull { source }),
            Err(source) => Err(data_error("allocating space")(source)),
        }
    }

    /// Sees to it that blocks are ready. Whether there are any.
    async fn make_ready(&self, owner: Option<ThinId>) -> io::Result<bool> {
        if self.allocator.lock().has_ready(owner) {
            return Ok(true);
        }
        let mut drawn = self.draw(owner, DRAW_BYTES / self.block_size.bytes()).await;
        for _ in 0..FULL_TRIES {
            if !matches!(&drawn, Err(cause) if is_full(cause)) {
                break;
            }
            // What is left may suffice for one; and a block elsewhere may have its space already.
            drawn = self.draw(owner, 1).await;
            if drawn.is_err() {
                self.allocator.lock().look_elsewhere();
            }
        }
        match drawn {
            Ok(false) => Ok(self.allocator.lock().take_over(owner)),
            Err(cause) if is_full(&cause) && self.allocator.lock().take_over(owner) => Ok(true),
            drawn => drawn,
        }
    }

    async fn draw(&self, owner: Option<ThinId>, max: u64) -> io::Result<bool> {
        let Some(drawn) = self.allocator.lock().draw(max) else {
            return Ok(false);
        };
        let at = drawn.start * self.block_size.bytes();
        let len = (drawn.end - drawn.start) * self.block_size.bytes();
        let allocated = self.data.allocate(at, len).await;
        let mut allocator = self.allocator.lock();
        match allocated {
            Ok(is_zero) => allocator.make_ready(owner, drawn, is_zero),
            Err(_) => allocator.put_back(drawn),
        }
        allocated.map(|_| true)
    }
}
