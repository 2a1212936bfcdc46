//! Telling somebody outside whether changes wait for a commit.
//!
//! Until there is an intent log, changes of mappings that were acknowledged but not committed are lost
//! with the process. Who keeps block devices alive beyond the process must know whether that can
//! have happened: what is told here is told before the first such change is acknowledged, and taken
//! back after the commit that leaves none.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

type Tell = Box<dyn Fn(bool) + Send + Sync>;

/// Whether changes wait for a commit, and who is told.
#[derive(Default)]
pub(crate) struct Watch {
    waits: AtomicBool,
    /// Held while something is told, so that it is told in order.
    telling: Mutex<()>,
    tell: OnceLock<Tell>,
}

impl Watch {
    /// From now on tells `tell`, at first what is true now. Whether nobody was told before.
    pub(crate) fn begin(&self, tell: Tell) -> bool {
        let _telling = self.telling.lock();
        tell(self.waits.load(Ordering::SeqCst));
        self.tell.set(tell).is_ok()
    }

    /// Called when a change has been counted, before it is acknowledged.
    pub(crate) fn changed(&self) {
        if self.waits.load(Ordering::SeqCst) {
            return;
        }
        let _telling = self.telling.lock();
        if !self.waits.swap(true, Ordering::SeqCst) {
            self.say(true);
        }
    }

    /// Called when a commit is durable; `waits` looks whether changes are counted that it lacks.
    pub(crate) fn committed(&self, waits: impl Fn() -> bool) {
        let _telling = self.telling.lock();
        // First this, then the look: who counts a change afterwards finds the flag down, and raises
        // it again behind us.
        self.waits.store(false, Ordering::SeqCst);
        if waits() {
            self.waits.store(true, Ordering::SeqCst);
        } else {
            self.say(false);
        }
    }

    fn say(&self, waits: bool) {
        if let Some(tell) = self.tell.get() {
            tell(waits);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_waits_is_told_once_and_taken_back_when_nothing_does() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let watch = Watch::default();
        watch.changed();
        let theirs = Arc::clone(&told);
        assert!(watch.begin(Box::new(move |waits| theirs.lock().push(waits))));
        watch.changed();
        watch.committed(|| true);
        watch.changed();
        watch.committed(|| false);
        watch.changed();
        watch.changed();
        assert_eq!(*told.lock(), [true, false, true]);
        assert!(!watch.begin(Box::new(|_| {})));
    }
}
