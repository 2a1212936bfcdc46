//! Requests and operations on names at the same time, interleaved at every await, and the power
//! cut in between.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicU64, Ordering};

use pool::Mode;
use tests::crowd::{BLOCKS, Crowd, VOLUMES, hesitant, volume};
use tests::executor::{Task, block_on, block_on_thread, run};
use tests::runs::seeds;
use tests::setup::expect_true_space;
use tests::sim::Shape;

#[test]
fn interleaved_requests_follow_the_rules() {
    seeds(
        1,
        150,
        "interleaved_requests_follow_the_rules",
        |mut prng| {
            let machine = hesitant(&mut prng, 600);
            let shared = Crowd::new(&machine, false, false);
            run(shared.tasks(&mut prng, 40, 10), &mut prng.fork());
            shared.check(&shared.pool, false);
            expect_true_space(&machine, &shared.pool);
        },
    );
}

#[test]
fn a_full_pool_stays_true() {
    seeds(1000, 150, "a_full_pool_stays_true", |mut prng| {
        let blocks = 10 + prng.below(12);
        let machine = hesitant(&mut prng, blocks);
        let shared = Crowd::new(&machine, false, true);
        run(shared.tasks(&mut prng, 40, 10), &mut prng.fork());
        shared.check(&shared.pool, false);
        expect_true_space(&machine, &shared.pool);
    });
}

#[test]
fn a_power_cut_under_load_loses_nothing_flushed() {
    seeds(
        2000,
        400,
        "a_power_cut_under_load_loses_nothing_flushed",
        |mut prng| {
            let machine = hesitant(&mut prng, 600);
            let shared = Crowd::new(&machine, true, false);
            let power = &machine.power;
            power.cut_at(Some(power.changes() + prng.below(600)));
            run(shared.tasks(&mut prng, 40, 10), &mut prng.fork());
            let survivor = machine.after_cut(Shape::any(&mut prng), &mut prng);
            let pool = survivor.open().unwrap();
            shared.check(&pool, true);
            expect_true_space(&survivor, &pool);
        },
    );
}

#[test]
fn a_kill_under_load_loses_nothing_acknowledged() {
    seeds(
        6000,
        400,
        "a_kill_under_load_loses_nothing_acknowledged",
        |mut prng| {
            let machine = hesitant(&mut prng, 600);
            let shared = Crowd::new(&machine, true, false);
            let power = &machine.power;
            power.set_kill(true);
            power.cut_at(Some(power.changes() + prng.below(900)));
            run(shared.tasks(&mut prng, 40, 10), &mut prng.fork());
            power.cut();
            let restarted = machine.after_kill(&mut prng);
            let pool = restarted.open().unwrap();
            shared.check(&pool, false);
            for index in 0..VOLUMES {
                let device = pool.open_device(&volume(index)).unwrap();
                block_on(device.flush()).unwrap();
            }
            let survivor = restarted.after_cut(Shape::any(&mut prng), &mut prng);
            let pool = survivor.open().unwrap();
            shared.check(&pool, false);
            expect_true_space(&survivor, &pool);
        },
    );
}

/// Whatever a failed read or write of the data store hits, a request or a commit that fills blocks
/// in: who asked is told, and nobody else loses anything.
#[test]
fn data_errors_under_load_lose_nothing_flushed() {
    let unharmed = AtomicU64::new(0);
    seeds(
        5000,
        200,
        "data_errors_under_load_lose_nothing_flushed",
        |mut prng| {
            let machine = hesitant(&mut prng, 600);
            let shared = Crowd::new(&machine, true, false);
            let mut tasks = shared.tasks(&mut prng, 30, 7);
            tasks.push(Box::pin(shared.data_errors(&machine, prng.fork(), 20)));
            run(tasks, &mut prng.fork());
            if shared.pool.status().mode == Mode::Write {
                unharmed.fetch_add(1, Ordering::Relaxed);
                shared.check(&shared.pool, false);
                expect_true_space(&machine, &shared.pool);
            }
            let survivor = machine.after_cut(Shape::any(&mut prng), &mut prng);
            let pool = survivor.open().unwrap();
            shared.check(&pool, true);
            expect_true_space(&survivor, &pool);
        },
    );
    let unharmed = unharmed.into_inner();
    eprintln!("{unharmed} pools stayed writable");
}

/// No request fails for want of space while discarded blocks are on their way back.
#[test]
fn space_on_its_way_back_is_waited_for() {
    seeds(
        3000,
        60,
        "space_on_its_way_back_is_waited_for",
        |mut prng| {
            // Two volumes fit exactly, if every discarded block can be used again.
            let blocks = VOLUMES as u64 * BLOCKS + 1;
            let machine = hesitant(&mut prng, blocks);
            let shared = Crowd::new(&machine, false, false);
            let mut tasks: Vec<Task<'_>> = Vec::new();
            for index in 0..VOLUMES {
                tasks.push(Box::pin(shared.requests(index, prng.fork(), 80)));
            }
            run(tasks, &mut prng.fork());
            shared.check(&shared.pool, false);
            expect_true_space(&machine, &shared.pool);
        },
    );
}

#[test]
fn real_threads_follow_the_rules() {
    seeds(4000, 8, "real_threads_follow_the_rules", |mut prng| {
        let machine = hesitant(&mut prng, 600);
        let shared = Crowd::new(&machine, false, false);
        std::thread::scope(|scope| {
            for index in 0..VOLUMES {
                for _ in 0..2 {
                    let (shared, prng) = (&shared, prng.fork());
                    scope.spawn(move || block_on_thread(shared.requests(index, prng, 200)));
                }
            }
            let (shared, prng) = (&shared, prng.fork());
            scope.spawn(move || block_on_thread(shared.control(prng, 60)));
        });
        shared.check(&shared.pool, false);
        expect_true_space(&machine, &shared.pool);
    });
}
