//! Runs the tasks and the data I/O of one thread.
//!
//! A request stays on the thread that took it in. [`Executor`] polls it once at once; warm reads and
//! writes in place finish there. What would block the thread goes to a [`BlockingPool`], and the
//! executor polls the task again when it is woken. The owner of the thread decides when to sleep:
//! [`Executor::wait`] ends when a task is woken or when the owner's socket has news.
//!
//! [`FileIo`] is the pool's data I/O over a file or a block device, [`FileLog`] its intent log,
//! [`FileHost`] its surroundings.
//! [`Background`] is a thread for front ends whose own threads must not wait, and [`block_on`] is for
//! tools.
//!
//! ```
//! use reactor::{Executor, block_on, yield_now};
//!
//! # fn main() -> std::io::Result<()> {
//! assert_eq!(block_on(async { 6 * 7 }), 42);
//!
//! let mut executor = Executor::new()?;
//! executor.spawn(async { yield_now().await });
//! assert_eq!(executor.len(), 1);
//! while !executor.is_empty() {
//!     executor.run_ready();
//! }
//! # Ok(())
//! # }
//! ```

mod background;
mod block_on;
mod blocking;
mod doorbell;
mod executor;
mod file;
mod group_sync;
mod host;
mod log;
mod pages;
mod promise;
#[expect(unsafe_code, reason = "the kernel uses memory by address")]
mod ring;

pub use background::Background;
pub use block_on::block_on;
pub use blocking::BlockingPool;
pub use executor::{Bell, Executor, Interest, News, yield_now};
pub use file::FileIo;
pub use host::FileHost;
pub use log::FileLog;
pub use promise::Offload;
pub use ring::{RING_IO_MARK, RingIo};
