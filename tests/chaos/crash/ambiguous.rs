//! Crashes while it is unknown whether Stripe has charged: each fault of the sandbox, combined with each step at which
//! the process is killed or a reply is lost, and with what Stripe still knows at the next attempt.
//!
//! Every final answer must be true: in the end the card was charged once for a 201, and not at all for a 402, whether
//! the charge was repeated, looked up and adopted, or decided by a person.
//!
//! All combinations take long. `CHAOS_CROSS` says how many of them are drawn, or `all`; `CHAOS_SEED` draws the same
//! again. One case is always tried: the process is killed before it can store that the card was charged, or that the
//! outcome is unknown.

use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::{Fault, Played, Run, Scenario, play_all, violations};
use crate::kind::Kind;
use crate::proxy::Target;
use crate::weather::Weather;
use crate::{number, say, seed};

const CUTS: [Fault; 2] = [Fault::Kill, Fault::DropBeforeReply];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_crash_with_faults_at_stripe_doubles_or_orphans_a_call() {
    let (began, seed) = (Instant::now(), seed());
    let all = std::env::var("CHAOS_CROSS").is_ok_and(|wanted| wanted == "all");
    let drawn = if all { usize::MAX } else { number("CHAOS_CROSS", 90) };

    let scenarios =
        Kind::ALL.into_iter().flat_map(|kind| [Scenario::FreshRequest(kind), Scenario::Completion(kind)]);
    let unbroken =
        scenarios.flat_map(|scenario| Weather::faulty().into_iter().map(move |w| Run::unbroken(scenario, w)));
    let mut ended = play_all(unbroken.collect()).await;
    let groups = ended.len();
    let mut wrong = violations(&ended);
    let mut tally = Tally::default();
    let (mut always, mut others) = (Vec::new(), Vec::new());
    for (run, ended) in ended.drain(..) {
        let Ok(played) = ended else { continue };
        tally.add(&played);
        let boundaries = run.boundaries(played);
        let charge = boundaries.iter().position(|boundary| boundary.target == Target::Stripe).expect("a charge");
        for n in 0..boundaries.len() {
            for cut in CUTS {
                let must = run.weather.charges_without_reply() && n == charge + 1 && cut == Fault::Kill;
                if must { &mut always } else { &mut others }.push(run.broken_at(&boundaries, n, cut));
            }
        }
    }
    let discovered = always.len() + others.len();
    others.shuffle(&mut StdRng::seed_from_u64(seed));
    others.truncate(drawn.saturating_sub(always.len()));
    let ended = play_all(always.into_iter().chain(others).collect()).await;
    wrong.extend(violations(&ended));
    ended.iter().flat_map(|(_, ended)| ended).for_each(|played| tally.add(played));
    let Tally { looked_up, decisions } = tally;
    say(&format!(
        "ambiguous: {discovered} combinations of a crash with {groups} weathers and scenarios, {} run, {looked_up} \
         look-ups, {decisions} decided by a person, {} violations, seed {seed}, {:.1} s",
        ended.len(),
        wrong.len(),
        began.elapsed().as_secs_f64()
    ));
    assert!(wrong.is_empty() && looked_up > 0 && decisions > 0, "seed {seed}: {wrong:#?}");
}

/// How the outcome of charges became known, other than by a repeated call.
#[derive(Default)]
struct Tally {
    looked_up: usize,
    decisions: usize,
}

impl Tally {
    fn add(&mut self, played: &Played) {
        self.looked_up += usize::from(played.crossed.iter().any(|boundary| boundary.label.starts_with("GET /v1/")));
        self.decisions += played.decisions;
    }
}
