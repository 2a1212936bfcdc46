//! Not a target: writes the images that inputs of `image` make, with what our check says of them, for
//! `compare.py`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::exercise::checked;
use crate::image::contents_of;

/// Writes `N.image` and `N.verdict` to the directory that the environment names.
pub fn run(input: &[u8]) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let directory = PathBuf::from(std::env::var_os("FUZZ_EXPORT").expect("FUZZ_EXPORT is set"));
    let image = contents_of(input).metadata;
    let file = File::create(directory.join(format!("{number}.image"))).unwrap();
    file.set_len(image.block_count * 4096).unwrap();
    for (nr, block) in &image.blocks {
        file.write_all_at(&block[..], nr * 4096).unwrap();
    }
    let report = checked(&image);
    let verdict = if report.is_sound() {
        "sound"
    } else if report.is_damaged() {
        "damaged"
    } else {
        "leaks"
    };
    let mut file = File::create(directory.join(format!("{number}.verdict"))).unwrap();
    writeln!(file, "{verdict}").unwrap();
    for finding in report.findings.iter().take(5) {
        writeln!(file, "{finding}").unwrap();
    }
}
