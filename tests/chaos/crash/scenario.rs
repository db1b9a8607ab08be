//! The scenarios in which faults strike, and what must be true afterwards.

use atomic_phases::idempotency::parked;
use atomic_phases::processes::{self, Place, Process};

use super::work::{LAST, work};
use crate::kind::{Books, Kind};
use crate::lane::{CLAIM, HAND_BACK, Lane, Service};
use crate::proxy::{Boundary, Fault, Plan};
use crate::support::app::pool;
use crate::support::client::{DECLINED_USER, Post, new_key};
use crate::weather::Weather;

/// A scenario in which faults strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    FreshRequest(Kind),
    DeclinedRequest,
    RepeatedRequest(Kind),
    Completion(Kind),
    Succession(Kind),
    Drain,
    Work,
    Reaping,
}

impl Scenario {
    pub fn all() -> Vec<Self> {
        let of_all = |scenario: fn(Kind) -> Self| Kind::ALL.map(scenario);
        let kinds = [Self::FreshRequest, Self::RepeatedRequest, Self::Completion, Self::Succession].map(of_all);
        kinds.into_iter().flatten().chain([Self::DeclinedRequest, Self::Drain, Self::Work, Self::Reaping]).collect()
    }

    pub fn name(self) -> String {
        match self {
            Self::FreshRequest(kind) => format!("fresh {}", kind.name()),
            Self::DeclinedRequest => "declined ride".to_owned(),
            Self::RepeatedRequest(kind) => format!("repetition of an unfinished {}", kind.name()),
            Self::Completion(kind) => format!("completion of a {}", kind.name()),
            Self::Succession(kind) => format!("{} of a process that has died", kind.name()),
            Self::Drain => "drain of the outbox".to_owned(),
            Self::Work => "worked job".to_owned(),
            Self::Reaping => "reaping".to_owned(),
        }
    }

    /// Returns the label of the last boundary of the work; only polling follows.
    pub fn last(self) -> &'static str {
        match self {
            Self::DeclinedRequest => Kind::Ride.last(),
            Self::FreshRequest(kind)
            | Self::RepeatedRequest(kind)
            | Self::Completion(kind)
            | Self::Succession(kind) => kind.last(),
            Self::Drain => "execute delete staged_jobs + insert jobs",
            Self::Work => LAST,
            Self::Reaping => "execute delete idempotency_keys + update idempotency_keys",
        }
    }

    /// Plays the scenario under this plan and in this weather, and checks that everything happened exactly once.
    pub async fn play(self, lane: &Lane, weather: Weather, plan: Plan) -> Played {
        match self {
            Self::FreshRequest(kind) => {
                let post = kind.request(&lane.app).await;
                ask(lane, weather, plan, kind, post, false, 201).await
            }
            Self::DeclinedRequest => {
                let post = Post::default().user(DECLINED_USER).key(&new_key());
                ask(lane, weather, plan, Kind::Ride, post, false, 402).await
            }
            Self::RepeatedRequest(kind) => {
                let post = kind.request(&lane.app).await;
                ask(lane, weather, plan, kind, post, true, 201).await
            }
            Self::Completion(kind) => complete(lane, weather, plan, kind).await,
            Self::Succession(kind) => succeed(lane, weather, plan, kind).await,
            Self::Drain => drain(lane, plan).await,
            Self::Work => work(lane, plan).await,
            Self::Reaping => reap(lane, plan).await,
        }
    }
}

/// What happened in a run.
#[derive(Debug, Default)]
pub struct Played {
    pub crossed: Vec<Boundary>,
    pub fired: Vec<(Fault, Boundary)>,
    /// How often a person had to decide.
    pub decisions: usize,
}

impl Played {
    /// Disarms the script: no fault strikes any more.
    pub fn end(lane: &Lane, service: &Service) -> Self {
        let (crossed, fired) = lane.script.disarm();
        Self { crossed, fired, decisions: service.decisions }
    }
}

/// A client sends a request, with or without an earlier attempt that failed half-way.
async fn ask(
    lane: &Lane,
    weather: Weather,
    plan: Plan,
    kind: Kind,
    post: Post,
    failed_before: bool,
    status: u16,
) -> Played {
    let before = lane.books().await;
    let mut service = Service::start(lane, "api", weather).await;
    let api = service.api().await;
    if failed_before {
        assert_eq!(api.post(post.clone().raising()).await.status, 500);
    }
    lane.script.arm(plan);
    let answer = service.insist(&post).await;
    let played = Played::end(lane, &service);
    assert!(weather.may_end_with(kind, status).contains(&answer.status), "{answer:?}");
    let replay = service.insist(&post).await;
    drop(service);

    assert!(replay.is_replay(), "{replay:?}");
    for replay in [replay, lane.app.post(post).await] {
        assert_eq!((answer.status, &answer.body), (replay.status, &replay.body), "replayed byte for byte");
    }
    lane.assert_exactly_once(before, kind.leaves(answer.status == 201)).await;
    played
}

/// The completer finishes what a client left half-way.
async fn complete(lane: &Lane, weather: Weather, plan: Plan, kind: Kind) -> Played {
    let post = kind.request(&lane.app).await;
    let before = lane.books().await;
    assert_eq!(lane.app.post(post.clone().raising()).await.status, 500);
    lane.app.execute("UPDATE idempotency_keys SET next_attempt_at = now() WHERE response_code IS NULL").await;
    finish(lane, weather, plan, kind, (CLAIM, post, before)).await
}

/// A process finishes what one was at work on that has died.
async fn succeed(lane: &Lane, weather: Weather, plan: Plan, kind: Kind) -> Played {
    let post = kind.request(&lane.app).await;
    let before = lane.books().await;
    assert_eq!(lane.app.post(post.clone().raising()).await.status, 500);
    // Its host has given its number to another one since.
    let place = Place { pid_started: Some(0), ..Place::here() };
    let dead = Process { place, ..Process::new(None, "1") };
    processes::beat(&pool(&lane.app.database_config).await, &dead).await.unwrap();
    let leased = "UPDATE idempotency_keys SET lease_token = gen_random_uuid(), locked_at = now(), process_id = $1,
                      next_attempt_at = now() + interval '1 hour' WHERE response_code IS NULL";
    lane.app.query(leased, &[&dead.id]).await;
    finish(lane, weather, plan, kind, (HAND_BACK, post, before)).await
}

/// Has a completer finish this request. Faults strike from the first message on that has this in its label.
async fn finish(
    lane: &Lane,
    weather: Weather,
    plan: Plan,
    kind: Kind,
    (first, post, before): (&'static str, Post, Books),
) -> Played {
    lane.script.arm_from(first, plan);
    let mut service = Service::start(lane, "completer", weather).await;
    service.until_count("idempotency_keys WHERE response_code IS NULL", 0).await;
    let played = Played::end(lane, &service);
    drop(service);

    let answer = lane.app.post(post).await;
    assert!(answer.is_replay() && weather.may_end_with(kind, 201).contains(&answer.status), "{answer:?}");
    lane.assert_exactly_once(before, kind.leaves(answer.status == 201)).await;
    played
}

/// The enqueuer delivers what three rides have staged.
async fn drain(lane: &Lane, plan: Plan) -> Played {
    let before = lane.books().await;
    for _ in 0..3 {
        assert_eq!(lane.app.post(Post::default()).await.status, 201);
    }
    lane.script.arm_from("delete staged_jobs", plan);
    let mut service = Service::start(lane, "enqueuer", Weather::FAIR).await;
    service.until_count("staged_jobs", 0).await;
    let played = Played::end(lane, &service);
    drop(service);

    lane.assert_exactly_once(before, Kind::Ride.leaves(true) * 3).await;
    assert_eq!(lane.app.count("jobs").await, before.jobs + 3, "all delivered");
    played
}

/// The reaper removes an old finished key and parks an old unfinished one, which is then retried as a person would do
/// it.
async fn reap(lane: &Lane, plan: Plan) -> Played {
    let before = lane.books().await;
    let (finished, unfinished) = (new_key(), new_key());
    assert_eq!(lane.app.post(Post::default().key(&finished)).await.status, 201);
    assert_eq!(lane.app.post(Post::default().key(&unfinished).raising()).await.status, 500);
    lane.app
        .execute(
            "UPDATE idempotency_keys SET created_at = now() - interval '73 hours',
                 last_run_at = now() - interval '73 hours', next_attempt_at = now() + interval '1 hour'",
        )
        .await;
    lane.script.arm_from("delete idempotency_keys", plan);
    let mut service = Service::start(lane, "reaper", Weather::FAIR).await;
    service.until_count("idempotency_keys WHERE response_code IS NOT NULL", 0).await;
    let played = Played::end(lane, &service);
    drop(service);

    let parked_id: i64 = lane.app.get("SELECT id FROM idempotency_keys WHERE parked_at IS NOT NULL").await;
    let retried = parked::retry(&pool(&lane.app.database_config).await, &[parked_id]).await.unwrap();
    assert_eq!(retried, [parked_id]);
    let answer = lane.app.post(Post::default().key(&unfinished)).await;
    assert_eq!((answer.status, answer.is_replay()), (201, false), "{answer:?}");
    lane.assert_exactly_once(before, Kind::Ride.leaves(true) * 2).await;
    played
}
