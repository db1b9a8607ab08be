//! Simulates clients: random rides at random moments, some of which go wrong in the ways that clients do.
//!
//! It knows only the API's address. What it finds wrong (an answer that changed, a status that the contract does not
//! have), it logs as an error.

mod client;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atomic_phases::roles::periodic::jittered;
use rand::RngExt;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::seed;
use client::{Answer, ApiClient, Asked};

/// Clients at once; when the API is slow, no new ones start until others have ended.
const MOST_CLIENTS: usize = 256;
/// How often it logs the outcomes of its rides.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// How often a client sends a request before it gives up.
const MAX_SENDS: u32 = 5;
/// Pause before the first repetition; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// A client that hangs up does so within this time.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// `[simulator]`: random clients. The shares are probabilities from 0 to 1 and independent of each other.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where to send requests; left out, it is this process's own API.
    pub api_base: Option<String>,
    /// New rides per second, arriving at random moments.
    pub rate: f64,
    /// Rides that ask the API to fail half-way (`raise_error`), after which the client gives up.
    pub raise_error: f64,
    /// Rides of the user whose card is declined.
    pub declined: f64,
    /// Rides sent twice at the same moment with the same key.
    pub duplicate: f64,
    /// Clients that hang up before the answer and never come back.
    pub hang_up: f64,
    /// Clients that repeat a request although it was answered, and expect the same answer.
    pub replay: f64,
    /// Clients that ask for a refund once they have paid.
    pub refund: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            api_base: None,
            rate: 5.0,
            raise_error: 0.1,
            declined: 0.1,
            duplicate: 0.1,
            hang_up: 0.1,
            replay: 0.1,
            refund: 0.1,
        }
    }
}

/// The outcomes of rides since the last report, and how many rides had each.
type Tally = Arc<Mutex<BTreeMap<String, u64>>>;

/// Sends traffic to `api_base` until `stop`; clients under way then hang up, as clients do.
pub async fn run(settings: Settings, api_base: String, stop: CancellationToken) {
    let client = ApiClient::new(&api_base);
    let tally = Tally::default();
    let mut clients = JoinSet::new();
    let mut report = tokio::time::interval(REPORT_EVERY);
    report.set_missed_tick_behavior(MissedTickBehavior::Delay);
    report.reset();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = report.tick() => tell(&tally),
            Some(_) = clients.join_next() => {}
            () = tokio::time::sleep(until_next(settings.rate)), if clients.len() < MOST_CLIENTS => {
                clients.spawn(run_client(client.clone(), Plan::random(&settings), Arc::clone(&tally)));
            }
        }
    }
}

/// Returns the time to the next arrival of a Poisson process, because clients are independent of each other.
fn until_next(rate: f64) -> Duration {
    let uniform: f64 = rand::rng().random_range(f64::EPSILON..1.0);
    Duration::from_secs_f64((-uniform.ln() / rate).min(3600.0))
}

fn tell(tally: &Tally) {
    let ended = std::mem::take(&mut *tally.lock().expect("no panic while locked"));
    if !ended.is_empty() {
        let rides: u64 = ended.values().sum();
        let outcomes = ended.iter().map(|(how, count)| format!("{count} {how}")).collect::<Vec<_>>().join(", ");
        tracing::info!(rides, outcomes, "simulated");
    }
}

/// What one client will do.
#[derive(Debug, Clone)]
struct Plan {
    ride: Asked,
    duplicate: bool,
    hang_up: bool,
    replay: bool,
    refund: bool,
}

impl Plan {
    fn random(settings: &Settings) -> Self {
        let mut rng = rand::rng();
        let [(good, _), (declined, _)] = seed::USERS;
        let mut coordinate = |bound: f64| (rng.random_range(-bound..bound) * 1e4).round() / 1e4;
        let mut place = || (coordinate(90.0), coordinate(180.0));
        let ((origin_lat, origin_lon), (target_lat, target_lon)) = (place(), place());
        Self {
            ride: Asked {
                path: "/rides".to_owned(),
                key: Uuid::new_v4().to_string(),
                email: if rng.random_bool(settings.declined) { declined } else { good },
                form: format!(
                    "origin_lat={origin_lat}&origin_lon={origin_lon}&target_lat={target_lat}&target_lon={target_lon}"
                ),
                raise_error: rng.random_bool(settings.raise_error),
            },
            duplicate: rng.random_bool(settings.duplicate),
            hang_up: rng.random_bool(settings.hang_up),
            replay: rng.random_bool(settings.replay),
            refund: rng.random_bool(settings.refund),
        }
    }
}

async fn run_client(client: ApiClient, plan: Plan, tally: Tally) {
    let ended = run_plan(&client, &plan).await;
    *tally.lock().expect("no panic while locked").entry(ended).or_default() += 1;
}

/// Carries out the plan and returns how it ended.
async fn run_plan(client: &ApiClient, plan: &Plan) -> String {
    if plan.hang_up {
        // Dropping the request closes its connection, whatever the API was doing.
        let hang_up_within = rand::rng().random_range(Duration::ZERO..LONGEST_WAIT);
        let _ = tokio::time::timeout(hang_up_within, client.post(&plan.ride)).await;
        return "hung up".to_owned();
    }
    let (answer, twin) = if plan.duplicate {
        let (answer, twin) =
            tokio::join!(send_until_final(client, &plan.ride), send_until_final(client, &plan.ride));
        (answer, Some(twin))
    } else {
        (send_until_final(client, &plan.ride).await, None)
    };
    let Some(answer) = answer else { return "gave up".to_owned() };
    let replayed = if plan.replay && answer.is_final() { send_until_final(client, &plan.ride).await } else { None };
    for other in [twin.flatten(), replayed].into_iter().flatten() {
        if answer.is_final() && other.is_final() && answer != other {
            let (first, second) = (answer.status, other.status);
            tracing::error!(first, second, "one request got two answers");
            return "contradicted".to_owned();
        }
    }
    match answer.location.filter(|_| plan.refund) {
        Some(place) => refund(client, &plan.ride, &place).await,
        None => format!("× {}", answer.status),
    }
}

/// Asks for a refund of the ride.
async fn refund(client: &ApiClient, ride: &Asked, place: &str) -> String {
    let refund = Asked {
        path: format!("{place}/refund"),
        key: Uuid::new_v4().to_string(),
        form: String::new(),
        raise_error: false,
        ..ride.clone()
    };
    match send_until_final(client, &refund).await {
        Some(answer) if answer.status == 201 => "refunded".to_owned(),
        Some(answer) => format!("refund × {}", answer.status),
        None => "gave up a refund".to_owned(),
    }
}

/// Sends the request until it has a final answer, [`MAX_SENDS`] times at most. A client that asked for a failure stops when
/// it gets one.
async fn send_until_final(client: &ApiClient, asked: &Asked) -> Option<Answer> {
    let mut pause = FIRST_PAUSE;
    for _ in 0..MAX_SENDS {
        match client.post(asked).await {
            Ok(answer) if answer.is_final() || (asked.raise_error && answer.status == 500) => return Some(answer),
            Ok(answer) if !matches!(answer.status, 409 | 500 | 503) => {
                tracing::error!(status = answer.status, "the API gave an answer that its contract does not have");
                return Some(answer);
            }
            Ok(_) | Err(_) => tokio::time::sleep(jittered(pause)).await,
        }
        pause *= 2;
    }
    None
}
