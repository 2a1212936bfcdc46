#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

fn superblock(number: u8) -> Block {
    let mut block = Block::zeroed();
    block.as_bytes_mut()[48] = number;
    block
}

fn numbers(history: &dyn HistoryStore) -> Vec<u8> {
    let kept = kept_superblocks(history).unwrap();
    kept.iter().map(|kept| kept.superblock[48]).collect()
}

fn opened(path: &std::path::Path) -> History {
    History::new(Box::new(FileHistory::new(path)))
}

#[test]
fn the_last_sixteen_are_kept_newest_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("superblocks");
    let store = FileHistory::new(&path);
    assert!(numbers(&store).is_empty());
    let mut history = opened(&path);
    (0..20).for_each(|number| history.keep(&superblock(number)));
    history.sync();
    assert_eq!(numbers(&store), (4..20).rev().collect::<Vec<u8>>());
    let kept = kept_superblocks(&store).unwrap();
    assert_eq!(kept[0].sequence, 19);
    let mut block = superblock(19);
    BlockKind::Superblock.seal(&mut block, LOCATION);
    assert_eq!(kept[0].superblock, *block.as_bytes());
    assert!(kept[0].time > 0 && kept[0].is(superblock(19).as_bytes()));
}

#[test]
fn a_damaged_slot_costs_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("superblocks");
    let store = FileHistory::new(&path);
    let mut history = opened(&path);
    (0..3).for_each(|number| history.keep(&superblock(number)));
    store.write(SLOT_BYTES as u64 + 600, b"x").unwrap();
    assert_eq!(numbers(&store), [2, 0]);
    // A slot in another's place.
    let first = store.load().unwrap()[..SLOT_BYTES].to_vec();
    store.write(SLOT_BYTES as u64, &first).unwrap();
    assert_eq!(numbers(&store), [2, 0]);
    std::fs::write(&path, vec![0xff; 5000]).unwrap();
    assert!(numbers(&store).is_empty());
}

#[test]
fn only_what_leads_to_the_present_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("superblocks");
    let store = FileHistory::new(&path);
    (0..5).for_each(|number| {
        let mut history = opened(&path);
        history.try_go_on_from(&superblock(number), true).unwrap();
    });
    assert_eq!(numbers(&store), [4, 3, 2, 1, 0]);
    let mut history = opened(&path);
    history.try_go_on_from(&superblock(2), false).unwrap();
    assert_eq!(numbers(&store), [2, 1, 0]);
    history.keep(&superblock(7));
    assert_eq!(numbers(&store), [7, 2, 1, 0]);
    // Somebody else has made commits meanwhile.
    let mut history = opened(&path);
    history.try_go_on_from(&superblock(9), false).unwrap();
    assert_eq!(numbers(&store), [9]);
    history.keep(&superblock(10));
    assert_eq!(numbers(&store), [10, 9]);
}

#[test]
fn a_superblock_of_more_than_a_sector_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("superblocks");
    let mut history = opened(&path);
    let mut strange = superblock(1);
    strange.as_bytes_mut()[4000] = 1;
    history.keep(&strange);
    assert!(numbers(&FileHistory::new(&path)).is_empty());
}
