//! The same with the real binary and a real SIGSTOP: the whole process stands still at a message while time goes on,
//! and on SIGCONT it continues where it was.

use std::time::Instant;

use nix::sys::signal::Signal;
use tokio::task::JoinHandle;

use super::{digest, expire_lease, is_finished};
use crate::kind::Kind;
use crate::lane::{CLAIM, Lane};
use crate::proxy::{Boundary, Fault, Plan, Strike};
use crate::say;
use crate::support::client::{Answer, Post};
use crate::support::eventually;
use crate::support::process::Process;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_stood_still_writes_nothing() {
    let began = Instant::now();
    let (mut requests, mut completions, mut rounds) = (0, 0, 0);
    for kind in Kind::ALL {
        let ((api, r), (completer, c)) =
            tokio::join!(stop_everywhere(kind, "api"), stop_everywhere(kind, "completer"));
        (requests, completions, rounds) = (requests + api, completions + completer, rounds + r + c);
    }
    say(&format!(
        "zombies: SIGSTOP at {requests} boundaries of a request and {completions} of a completion, {} of {} rounds, \
         0 writes by stale processes, {:.1} s",
        rounds,
        2 * (requests + completions),
        began.elapsed().as_secs_f64()
    ));
}

/// Stops a process with these roles at each of its boundaries, before the message has arrived and after. Returns how many
/// boundaries and how many rounds there were.
async fn stop_everywhere(kind: Kind, roles: &'static str) -> (usize, usize) {
    let lane = Lane::new().await;
    let boundaries = discover(&lane, kind, roles).await;
    let mut rounds = 0;
    for n in 1..=boundaries.len() {
        for fault in Fault::HOLDING {
            let strike = Strike::at_last_of(&boundaries[..n], fault);
            stand_still(&lane, kind, roles, strike).await;
            rounds += 1;
        }
    }
    lane.deliver().await;
    lane.app.assert_sound().await;
    (boundaries.len(), rounds)
}

/// Returns the boundaries of one piece of work that nothing stops.
async fn discover(lane: &Lane, kind: Kind, roles: &str) -> Vec<Boundary> {
    let (mut process, work, post) = begin(lane, kind, roles, Plan::new()).await;
    eventually("an answer", async || (is_finished(&lane.app, &post).await == Some(true)).then_some(())).await;
    work.await.unwrap();
    process.signal(Signal::SIGTERM);
    process.exit().await;
    let (mut crossed, _) = lane.script.disarm();
    let last = crossed.iter().position(|boundary| boundary.label == kind.last()).expect("it was finished");
    crossed.truncate(last + 1);
    crossed
}

/// Plays one round: the process stands still where `strike` holds it.
async fn stand_still(lane: &Lane, kind: Kind, roles: &str, strike: Strike) {
    let context = format!("{kind:?}, {roles}, {strike:?}");
    let (mut process, work, post) = begin(lane, kind, roles, vec![strike]).await;
    lane.script.until_held().await;
    process.signal(Signal::SIGSTOP);
    expire_lease(&lane.app, &post).await;
    assert_eq!(lane.app.post(post.clone()).await.status, 201, "{context}: the successor");

    let before = digest(&lane.app).await;
    process.signal(Signal::SIGCONT);
    lane.script.release();
    if let Some(answer) = work.await.unwrap() {
        assert!(matches!(answer.status, 201 | 409), "{context}: {answer:?}");
    }
    process.signal(Signal::SIGTERM);
    assert!(process.exit().await.success(), "{context}: {:#?}", process.log());
    assert_eq!(digest(&lane.app).await, before, "{context}: the stale process wrote something");
    // Whether a call was made twice is checked by the invariants, once all rounds are done.
    lane.script.disarm();
}

type Work = JoinHandle<Option<Answer>>;

/// Starts a process and gives it work: to an API a request, to a completer a request that a client has left half-way.
async fn begin(lane: &Lane, kind: Kind, roles: &str, plan: Plan) -> (Process, Work, Post) {
    let post = kind.request(&lane.app).await;
    if roles == "completer" {
        assert_eq!(lane.app.post(post.clone().raising()).await.status, 500);
        expire_lease(&lane.app, &post).await;
        lane.script.arm_from(CLAIM, plan);
        return (lane.spawn(roles), tokio::spawn(async { None }), post);
    }
    let process = lane.spawn(roles);
    let api = process.api().await;
    lane.script.arm(plan);
    let request = post.clone();
    (process, tokio::spawn(async move { Some(api.post(request).await) }), post)
}
