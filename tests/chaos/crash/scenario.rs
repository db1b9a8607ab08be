//! What is broken, and what must be true afterwards.

use rocket_rides_atomic::idempotency::parked;

use super::work::{LAST, work};
use crate::lane::{CLAIM, FINISH, Lane, Service};
use crate::proxy::{Boundary, Fault, Plan};
use crate::support::client::{DECLINED_USER, Post, new_key};
use crate::support::world::pool;
use crate::weather::Weather;

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    FreshRequest,
    DeclinedRequest,
    RepeatedRequest,
    Completion,
    Drain,
    Work,
    Reaping,
}

impl Scenario {
    pub const ALL: [Self; 7] = [
        Self::FreshRequest,
        Self::DeclinedRequest,
        Self::RepeatedRequest,
        Self::Completion,
        Self::Drain,
        Self::Work,
        Self::Reaping,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::FreshRequest => "fresh request",
            Self::DeclinedRequest => "declined request",
            Self::RepeatedRequest => "repetition of an unfinished request",
            Self::Completion => "completion",
            Self::Drain => "drain of the outbox",
            Self::Work => "worked job",
            Self::Reaping => "reaping",
        }
    }

    /// What a boundary's label says when all is done; what follows is polling.
    pub fn last(self) -> &'static str {
        match self {
            Self::FreshRequest | Self::DeclinedRequest | Self::RepeatedRequest | Self::Completion => FINISH,
            Self::Drain => "execute delete staged_jobs + insert jobs",
            Self::Work => LAST,
            Self::Reaping => "execute delete idempotency_keys + update idempotency_keys",
        }
    }

    /// Plays it under this plan and in this weather, and checks that everything happened exactly once.
    pub async fn play(self, lane: &Lane, weather: Weather, plan: Plan) -> Played {
        match self {
            Self::FreshRequest => ask(lane, weather, plan, Post::default(), false, 201).await,
            Self::DeclinedRequest => {
                ask(lane, weather, plan, Post::default().user(DECLINED_USER), false, 402).await
            }
            Self::RepeatedRequest => ask(lane, weather, plan, Post::default(), true, 201).await,
            Self::Completion => complete(lane, weather, plan).await,
            Self::Drain => drain(lane, plan).await,
            Self::Work => work(lane, plan).await,
            Self::Reaping => reap(lane, plan).await,
        }
    }
}

/// What happened.
#[derive(Debug, Default)]
pub struct Played {
    pub crossed: Vec<Boundary>,
    pub fired: Vec<(Fault, Boundary)>,
    /// How often a person had to decide.
    pub decisions: usize,
}

impl Played {
    /// Ends the part in which something may break.
    pub fn end(lane: &Lane, service: &Service) -> Self {
        let (crossed, fired) = lane.script.disarm();
        Self { crossed, fired, decisions: service.decisions }
    }
}

/// A client asks for a ride, with or without an attempt before that failed half-way.
async fn ask(lane: &Lane, weather: Weather, plan: Plan, post: Post, failed_before: bool, status: u16) -> Played {
    let post = post.key(&new_key());
    let before = lane.books().await;
    let mut service = Service::start(lane, "api", weather).await;
    let api = service.api().await;
    if failed_before {
        assert_eq!(api.post(post.clone().raising()).await.status, 500);
    }
    lane.script.arm(plan);
    let answer = service.insist(&post).await;
    let played = Played::end(lane, &service);
    assert!(weather.may_end_with(status).contains(&answer.status), "{answer:?}");
    let replay = service.insist(&post).await;
    drop(service);

    assert!(replay.is_replay(), "{replay:?}");
    for replay in [replay, lane.world.post(post).await] {
        assert_eq!((answer.status, &answer.body), (replay.status, &replay.body), "replayed byte for byte");
    }
    lane.assert_exactly_once(before, 1, i64::from(answer.status == 201)).await;
    played
}

/// The completer finishes what a client left half-way.
async fn complete(lane: &Lane, weather: Weather, plan: Plan) -> Played {
    let post = Post::default().key(&new_key());
    let before = lane.books().await;
    assert_eq!(lane.world.post(post.clone().raising()).await.status, 500);
    lane.world.execute("UPDATE idempotency_keys SET next_attempt_at = now() WHERE response_code IS NULL").await;
    lane.script.arm_from(CLAIM, plan);
    let mut service = Service::start(lane, "completer", weather).await;
    service.until_count("idempotency_keys WHERE response_code IS NULL", 0).await;
    let played = Played::end(lane, &service);
    drop(service);

    let answer = lane.world.post(post).await;
    assert!(answer.is_replay() && weather.may_end_with(201).contains(&answer.status), "{answer:?}");
    lane.assert_exactly_once(before, 1, i64::from(answer.status == 201)).await;
    played
}

/// The enqueuer delivers what three rides have staged.
async fn drain(lane: &Lane, plan: Plan) -> Played {
    let before = lane.books().await;
    for _ in 0..3 {
        assert_eq!(lane.world.post(Post::default()).await.status, 201);
    }
    lane.script.arm_from("delete staged_jobs", plan);
    let mut service = Service::start(lane, "enqueuer", Weather::FAIR).await;
    service.until_count("staged_jobs", 0).await;
    let played = Played::end(lane, &service);
    drop(service);

    lane.assert_exactly_once(before, 3, 3).await;
    assert_eq!(lane.world.count("jobs").await, before.receipts + 3, "all delivered");
    played
}

/// The reaper removes an old key that is finished and sets aside one that is not, which a person then lets go on.
async fn reap(lane: &Lane, plan: Plan) -> Played {
    let before = lane.books().await;
    let (finished, unfinished) = (new_key(), new_key());
    assert_eq!(lane.world.post(Post::default().key(&finished)).await.status, 201);
    assert_eq!(lane.world.post(Post::default().key(&unfinished).raising()).await.status, 500);
    lane.world
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

    let parked_id: i64 = lane.world.get("SELECT id FROM idempotency_keys WHERE parked_at IS NOT NULL").await;
    let retried = parked::retry(&pool(&lane.world.database_config).await, &[parked_id]).await.unwrap();
    assert_eq!(retried, [parked_id]);
    let answer = lane.world.post(Post::default().key(&unfinished)).await;
    assert_eq!((answer.status, answer.is_replay()), (201, false), "{answer:?}");
    lane.assert_exactly_once(before, 2, 2).await;
    played
}
