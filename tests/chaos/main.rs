//! Break it, at random and for as long as you like, and then look at the books.
//!
//! `crash` is not at random: it breaks every message to Postgres and Stripe in every way there is, and some while Stripe
//! fails as well. `zombie` lets
//! workers go on after others have taken over, `storm` sends everybody at once, `histories` has Stripe leave everybody
//! guessing, `clock` moves the host's clock, and `soak` kills processes and Postgres under traffic for a while. `seeded`
//! makes sure that the books would show it if something were wrong. All of it attacks every operation, or every [`kind`].
//!
//! Every run prints its seed, and `CHAOS_SEED` replays the choices of a run. What a run did is printed; say
//! `cargo test --test chaos -- --nocapture` to see it.

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

/// A number from this variable, or the one that suits a developer's patience.
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

/// What all random choices of a test follow from.
fn seed() -> u64 {
    std::env::var("CHAOS_SEED")
        .map_or_else(|_| rand::random(), |text| text.parse().expect("CHAOS_SEED is a number"))
}

#[expect(clippy::print_stdout, reason = "what was measured is what the test is run for")]
fn say(line: &str) {
    println!("{line}");
}
