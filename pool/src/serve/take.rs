//! Taking free data blocks that are sure of their space.

use std::io;

use crate::allocator::Fresh;
use crate::error::{Error, is_full};
use crate::host::{DataIo, Host};
use crate::pool::Pool;
use crate::serve::data_error;

/// How much of the data store is asked for at once, in bytes.
const DRAW_BYTES: u64 = 1024 * 1024;

impl<H: Host> Pool<H> {
    /// Takes a free data block that can be written without lack of space on the data store.
    ///
    /// # Errors
    /// As [`Pool::ready_block`].
    pub(super) async fn take_block(&self) -> Result<Fresh, Error> {
        loop {
            if let Some(fresh) = self.allocator.lock().take() {
                return Ok(fresh);
            }
            self.ready_block().await?;
        }
    }

    /// Sees to it that there is a block to take, of whose space the data store is sure.
    ///
    /// # Errors
    /// [`Error::OutOfDataSpace`] when no block is free, [`Error::DataStoreFull`] when there is no space
    /// for it.
    pub(super) async fn ready_block(&self) -> Result<(), Error> {
        let _drawing = self.drawing.acquire().await;
        match self.make_ready().await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::OutOfDataSpace),
            Err(source) if is_full(&source) => Err(Error::DataStoreFull { source }),
            Err(source) => Err(data_error("allocating space")(source)),
        }
    }

    /// Sees to it that blocks are ready. Whether there are any.
    async fn make_ready(&self) -> io::Result<bool> {
        if self.allocator.lock().has_ready() {
            return Ok(true);
        }
        match self.draw(DRAW_BYTES / self.block_size.bytes()).await {
            // What is left may suffice for one.
            Err(cause) if is_full(&cause) => self.draw(1).await,
            outcome => outcome,
        }
    }

    async fn draw(&self, max: u64) -> io::Result<bool> {
        let Some(drawn) = self.allocator.lock().draw(max) else {
            return Ok(false);
        };
        let at = drawn.start * self.block_size.bytes();
        let len = (drawn.end - drawn.start) * self.block_size.bytes();
        let allocated = self.data.allocate(at, len).await;
        let mut allocator = self.allocator.lock();
        match allocated {
            Ok(is_zero) => allocator.make_ready(drawn, is_zero),
            Err(_) => allocator.put_back(drawn),
        }
        allocated.map(|_| true)
    }
}
