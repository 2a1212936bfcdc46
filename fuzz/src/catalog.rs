//! A catalog, of a pool that is sound.

use crate::exercise::{Trust, use_and_close};
use crate::machine::{Contents, Machine};
use crate::pools;

pub fn run(input: &[u8]) {
    let machine = Machine::new(Contents {
        catalog: input.to_vec(),
        ..pools::all()[1].contents.clone()
    });
    let Ok(pool) = machine.open() else { return };
    let known = pool.devices();
    drop(pool);
    // Opening may have cut off and added lines; once it has, it finds the same.
    let pool = machine.open().expect("a pool that was opened opens again");
    assert_eq!(pool.devices(), known, "opened again, it has other devices");
    use_and_close(&machine, &pool, Trust::Sound);
    machine.open().expect("a pool that was closed opens again");
}
