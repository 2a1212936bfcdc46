//! Work on many things at once, whose results come in the order of the things.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::thread;

/// As many threads as can run at a time.
#[must_use]
pub fn all_processors() -> NonZero<usize> {
    thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN)
}

/// Does `work` on each of `items` in up to `threads` threads, this one among them. Each item should be worth
/// the start of a thread.
pub(crate) fn map<T: Sync, R: Send>(
    threads: NonZero<usize>,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let share = items.len().div_ceil(threads.get()).max(1);
    let do_share = |share: &[T]| share.iter().map(&work).collect::<Vec<R>>();
    let do_share = &do_share;
    let mut shares = items.chunks(share);
    thread::scope(|scope| {
        let mine = shares.next().unwrap_or_default();
        let others: Vec<_> = shares
            .map(|share| scope.spawn(move || do_share(share)))
            .collect();
        let mut done = do_share(mine);
        for other in others {
            done.extend(other.join().unwrap_or_else(|cause| resume_unwind(cause)));
        }
        done
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order() {
        for count in [0, 1, 2, 3, 10, 1000] {
            let items: Vec<u32> = (0..count).collect();
            for threads in 1..5 {
                let Some(threads) = NonZero::new(threads) else {
                    unreachable!("from 1 on")
                };
                assert_eq!(map(threads, &items, |item| *item), items);
            }
        }
    }
}
