//! A real pool on temporary files, mounted by FUSE, used through ordinary system calls; and loop
//! devices with file systems on top. Needs root and `/dev/fuse`; says so and passes without them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests and their helpers may panic"
)]

mod dead;
mod files;
mod loops;
mod requests;
mod rig;
