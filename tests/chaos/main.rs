//! Chaos tests: they break the program, at random and for as long as you like, and then check the books.
//!
//! - `crash` is not random: it breaks every message to Postgres and Stripe in every way there is, and some of them
//!   while Stripe fails as well.
//! - `zombie` lets workers go on after others have taken over.
//! - `storm` sends many requests at once with one key.
//! - `histories` leaves the outcome of charges unknown.
//! - `deaths` kills processes under load, and measures how soon their work goes on.
//! - `clock` moves the host's clock.
//! - `soak` kills processes and Postgres under traffic for a while.
//! - `seeded` plants bugs and checks that the books show each of them.
//!
//! The first four attack every operation, that is every [`kind`].
//!
//! Every run prints its seed, and `CHAOS_SEED` replays the choices of a run. To see what a run did, use
//! `cargo test --test chaos -- --nocapture`.

#![expect(unreachable_pub, reason = "the support modules are the library of this crate, which has no outside")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed, helper or not")]
#![allow(dead_code, reason = "the support modules serve the integration tests too")]

#[path = "../support/mod.rs"]
mod support;
#[path = "../wire/mod.rs"]
mod wire;

#[cfg(target_os = "linux")]
mod clock;
mod crash;
mod crew;
mod deaths;
mod histories;
mod kind;
mod lane;
mod pool;
mod proxy;
mod seeded;
mod soak;
mod storm;
mod weather;
mod zombie;

/// Returns the number in this variable, or a default that is small enough for a developer's run.
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

/// Returns the seed of all random choices of a test.
fn seed() -> u64 {
    std::env::var("CHAOS_SEED")
        .map_or_else(|_| rand::random(), |text| text.parse().expect("CHAOS_SEED is a number"))
}

#[expect(clippy::print_stdout, reason = "what was measured is what the test is run for")]
fn say(line: &str) {
    println!("{line}");
}
