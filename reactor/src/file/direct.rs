//! Data I/O past the page cache.
//!
//! The file is opened for nothing else, so that no page in the cache can be older or newer than the store. What
//! I/O asks for is whole pages: a read takes those around its range, and a write that covers a page in part reads
//! it, changes it, and writes it. Meanwhile nobody else may write that page; so writes hold the pages that they
//! concern, and one that wants a page somebody holds waits.
//!
//! Each request is one for the ring of its thread where it has one, else for a thread that may wait.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{FileIo, asks_again};
use crate::pages::{PAGE_BYTES, Pages};
use crate::promise::{Promise, promise};
use crate::ring::{self, Request};

const PAGE: u64 = PAGE_BYTES as u64;

impl FileIo {
    pub(super) async fn read_direct(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let pages = pages_around(at, buf.len());
        let bytes = self.read_pages(&pages).await?;
        let begin = offset_in(&pages, at);
        buf.copy_from_slice(&bytes[begin..begin + buf.len()]);
        Ok(())
    }

    pub(super) async fn write_direct(
        &self,
        held: &HeldPages,
        at: u64,
        buf: &[u8],
    ) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let pages = pages_around(at, buf.len());
        let _held = held.hold(pages.clone()).await;
        let mut bytes = Pages::zeroed(offset_in(&pages, pages.end));
        for edge in covered_in_part(&pages, at, buf.len()) {
            let place = offset_in(&pages, edge);
            let page = self.read_pages(&(edge..edge + PAGE)).await?;
            bytes[place..place + PAGE_BYTES].copy_from_slice(&page);
        }
        let begin = offset_in(&pages, at);
        bytes[begin..begin + buf.len()].copy_from_slice(buf);
        self.write_pages(pages.start, bytes).await
    }

    pub(super) async fn zero_direct(&self, held: &HeldPages, at: u64, len: u64) -> io::Result<()> {
        let end = at + len;
        let whole = at.next_multiple_of(PAGE)..end / PAGE * PAGE;
        if whole.is_empty() {
            let zeros = vec![0; offset_in(&(at..end), end)];
            return self.write_direct(held, at, &zeros).await;
        }
        let zeros = [0; PAGE_BYTES];
        let before = &zeros[..offset_in(&(at..end), whole.start)];
        self.write_direct(held, at, before).await?;
        let behind = &zeros[..offset_in(&whole, end) - offset_in(&whole, whole.end)];
        self.write_direct(held, whole.end, behind).await?;
        let _held = held.hold(whole.clone()).await;
        self.zero_range(whole.start, whole.end - whole.start).await
    }

    async fn read_pages(&self, pages: &Range<u64>) -> io::Result<Pages> {
        let at = pages.start;
        let mut buffer = Pages::zeroed(offset_in(pages, pages.end));
        if ring::is_here() {
            let len = buffer.len();
            if let Ok(finished) = self.through_ring(Request::Read { at, buffer }).await {
                match finished.result {
                    Ok(count) if count == len => return Ok(finished.buffer),
                    Err(cause) if !asks_again(&cause) => return Err(cause),
                    // In part, or not now: all of it again, by who may wait.
                    _ => {}
                }
            }
            buffer = Pages::zeroed(len);
        }
        let file = Arc::clone(&self.file);
        let job = move || file.read_exact_at(&mut buffer, at).map(|()| buffer);
        self.threads.offload(job).await
    }

    async fn write_pages(&self, at: u64, mut buffer: Pages) -> io::Result<()> {
        if ring::is_here() {
            let len = buffer.len();
            match self.through_ring(Request::Write { at, buffer }).await {
                Ok(finished) => match finished.result {
                    Ok(count) if count == len => return Ok(()),
                    Err(cause) if !asks_again(&cause) => return Err(cause),
                    _ => buffer = finished.buffer,
                },
                Err(request) => buffer = request.into_buffer(),
            }
        }
        let file = Arc::clone(&self.file);
        let job = move || file.write_all_at(&buffer, at);
        self.threads.offload(job).await
    }
}

/// The whole pages that a range lies in.
fn pages_around(at: u64, len: usize) -> Range<u64> {
    let begin = at / PAGE * PAGE;
    begin..(at + len as u64).next_multiple_of(PAGE)
}

/// The first and the last page around a range, if they hold something else as well.
fn covered_in_part(pages: &Range<u64>, at: u64, len: usize) -> impl Iterator<Item = u64> + use<> {
    let first = (at != pages.start).then_some(pages.start);
    let last = (at + len as u64 != pages.end).then_some(pages.end - PAGE);
    first
        .into_iter()
        .chain(last.filter(|last| Some(*last) != first))
}

/// How far behind the beginning of a range a position lies, or its end.
fn offset_in(range: &Range<u64>, at: u64) -> usize {
    usize::try_from(at - range.start).unwrap_or(usize::MAX)
}

/// Which pages somebody writes.
#[derive(Default)]
pub(super) struct HeldPages(Mutex<State>);

#[derive(Default)]
struct State {
    held: Vec<Range<u64>>,
    waiting: Vec<Promise<()>>,
}

impl HeldPages {
    /// Holds pages as soon as nobody else holds any of them, until dropped.
    pub(super) async fn hold(&self, pages: Range<u64>) -> Holding<'_> {
        loop {
            let freed = {
                let mut state = self.0.lock();
                let overlaps = |held: &Range<u64>| held.start < pages.end && pages.start < held.end;
                if !state.held.iter().any(overlaps) {
                    state.held.push(pages.clone());
                    return Holding { home: self, pages };
                }
                let (freeing, freed) = promise();
                state.waiting.push(freeing);
                freed
            };
            freed.await;
        }
    }
}

/// Pages that are held.
pub(super) struct Holding<'a> {
    home: &'a HeldPages,
    pages: Range<u64>,
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        let mut state = self.home.0.lock();
        let own = state.held.iter().position(|held| *held == self.pages);
        if let Some(own) = own {
            state.held.swap_remove(own);
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(|freeing| freeing.keep(Ok(())));
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use pool::DataIo;

    use super::*;
    use crate::ring::tests::{Task, run_with_ring};
    use crate::{BlockingPool, Executor, block_on};

    const LEN: usize = 1 << 18;

    fn store() -> (tempfile::NamedTempFile, Arc<FileIo>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(LEN as u64).unwrap();
        let opened = File::options().read(true).write(true).open(file.path());
        let io = FileIo::direct(opened.unwrap(), BlockingPool::new(4)).unwrap();
        (file, Arc::new(io))
    }

    fn run_without_ring(tasks: Vec<Task>) {
        let mut executor = Executor::new().unwrap();
        tasks.into_iter().for_each(|task| executor.spawn(task));
        while !executor.is_empty() {
            executor.wait(None, None).unwrap();
            executor.run_ready();
        }
    }

    /// Numbers that look random, the same each time.
    fn numbers() -> impl FnMut(usize) -> usize {
        let mut state = 88_172_645_463_325_252_u64;
        move |below| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        }
    }

    async fn read_write_and_zero(io: Arc<FileIo>) {
        let mut model = vec![0; LEN];
        let mut number = numbers();
        for step in 0..400u32 {
            let at = number(LEN);
            let longest = [100, 5000, 40_000][number(3)];
            let len = number(longest).min(LEN - at);
            // Now and then where a page or a sector begins.
            let unit = [1, 512, PAGE_BYTES][number(3)];
            let at = at / unit * unit;
            let range = at..(at + len).min(LEN);
            let place = range.start as u64;
            match number(3) {
                0 => {
                    let bytes = vec![u8::try_from(step % 255).unwrap() + 1; range.len()];
                    io.write(place, &bytes).await.unwrap();
                    model[range].copy_from_slice(&bytes);
                }
                1 => {
                    io.zero(place, range.len() as u64).await.unwrap();
                    model[range].fill(0);
                }
                _ => {
                    let mut read = vec![0xee; range.len()];
                    io.read(place, &mut read).await.unwrap();
                    assert_eq!(read, model[range]);
                }
            }
        }
        let mut read = vec![0; LEN];
        io.read(0, &mut read).await.unwrap();
        assert_eq!(read, model);
    }

    #[test]
    fn any_range_can_be_read_written_and_zeroed() {
        let (_file, io) = store();
        block_on(read_write_and_zero(io));
    }

    #[test]
    fn through_a_ring_as_well() {
        let (_file, io) = store();
        let operations = run_with_ring(move || vec![Box::pin(read_write_and_zero(io))]);
        assert!(operations > 400, "{operations}");
    }

    /// One writer for each sector, those of a page all at once.
    fn sector_writers(io: &Arc<FileIo>) -> Vec<Task> {
        let write = |sector: usize| {
            let io = Arc::clone(io);
            Box::pin(async move {
                let bytes = [u8::try_from(sector % 255).unwrap() + 1; 512];
                io.write(sector as u64 * 512, &bytes).await.unwrap();
            }) as Task
        };
        (0..LEN / 512).map(write).collect()
    }

    fn assert_all_sectors(io: &FileIo) {
        let mut read = vec![0; LEN];
        block_on(io.read(0, &mut read)).unwrap();
        for (sector, bytes) in read.chunks(512).enumerate() {
            let expected = u8::try_from(sector % 255).unwrap() + 1;
            assert!(bytes.iter().all(|byte| *byte == expected), "{sector}");
        }
    }

    #[test]
    fn who_writes_a_part_of_a_page_keeps_what_others_write_to_it() {
        let (_file, io) = store();
        run_without_ring(sector_writers(&io));
        assert_all_sectors(&io);
        let (_file, io) = store();
        let theirs = Arc::clone(&io);
        run_with_ring(move || sector_writers(&theirs));
        assert_all_sectors(&io);
    }

    #[test]
    fn what_cannot_be_done_past_the_page_cache_is_refused() {
        let file = File::open("/proc/self/status").unwrap();
        assert!(FileIo::direct(file, BlockingPool::new(1)).is_err());
    }
}
