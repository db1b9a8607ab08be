//! Delivery to a queue outside the database: leases, failures of jobs and of the queue, and two enqueuers at once.
//!
//! The queue is an implementation of the public trait for tests, which fails when it is told to.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use atomic_phases::queue::foreign::ExternalRelay;
use atomic_phases::queue::health::QueueHealth;
use atomic_phases::queue::outbox::{self, PushResults};
use atomic_phases::queue::{BEFORE_FIRST, Delivery, Queue, QueueDown, Relay, StagedJob};
use atomic_phases::roles::enqueuer::Enqueuer;
use atomic_phases::roles::periodic::poll;
use rocket_rides_atomic::config;
use rocket_rides_atomic::metrics::Metrics;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::app::{TestApp, pool, stage};
use crate::support::{cluster, eventually};

/// What the queue does next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum QueueBehavior {
    Takes,
    Refuses,
    Hangs,
    /// It takes the jobs after longer than a round may begin batches.
    Slow,
    /// The job's argument decides: of every ten, the first is refused for now and the second for good.
    Choosy,
}

/// A queue that stores the jobs and counts the pushes.
#[derive(Debug, Clone)]
pub struct FakeQueue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    mood: Mutex<QueueBehavior>,
    taken: Mutex<Vec<i64>>,
    pushes: AtomicUsize,
}

impl FakeQueue {
    pub fn new(mood: QueueBehavior) -> Self {
        Self(Arc::new(Inner { mood: Mutex::new(mood), taken: Mutex::default(), pushes: AtomicUsize::new(0) }))
    }

    pub fn count(&self) -> usize {
        self.0.taken.lock().unwrap().len()
    }

    fn mood(&self, mood: QueueBehavior) {
        *self.0.mood.lock().unwrap() = mood;
    }

    pub fn taken(&self) -> Vec<i64> {
        self.0.taken.lock().unwrap().clone()
    }

    pub fn pushes(&self) -> usize {
        self.0.pushes.load(Ordering::SeqCst)
    }
}

impl Queue for FakeQueue {
    fn name(&self) -> &'static str {
        "shelf"
    }

    async fn push(&self, jobs: &[StagedJob]) -> Result<Vec<Delivery>, QueueDown> {
        self.0.pushes.fetch_add(1, Ordering::SeqCst);
        let mood = *self.0.mood.lock().unwrap();
        match mood {
            QueueBehavior::Refuses => return Err(QueueDown("closed".into())),
            QueueBehavior::Hangs => std::future::pending().await,
            QueueBehavior::Slow => tokio::time::sleep(Duration::from_millis(1100)).await,
            QueueBehavior::Takes | QueueBehavior::Choosy => tokio::task::yield_now().await,
        }
        let deliver = |job: &StagedJob| match job.args.get().parse::<i64>().unwrap_or(0) % 10 {
            1 if mood == QueueBehavior::Choosy => Delivery::Transient("not\0today".into()),
            2 if mood == QueueBehavior::Choosy => Delivery::Permanent("never".into()),
            _ => {
                self.0.taken.lock().unwrap().push(job.id);
                Delivery::Delivered
            }
        };
        Ok(jobs.iter().map(deliver).collect())
    }
}

pub struct Running {
    health: Arc<QueueHealth>,
    staged: Arc<Notify>,
    metrics: Arc<Metrics>,
    _stop: DropGuard,
}

async fn relay_to(
    shelf: &FakeQueue,
    app: &TestApp,
    config: &config::Enqueuer,
    health: &Arc<QueueHealth>,
) -> ExternalRelay<FakeQueue> {
    ExternalRelay {
        database: pool(&app.database_config).await,
        queue: shelf.clone(),
        policy: config.push_policy(),
        health: Arc::clone(health),
    }
}

/// Starts an enqueuer beside the app's own roles.
pub async fn enqueue_to(shelf: &FakeQueue, app: &TestApp, change: impl FnOnce(&mut config::Enqueuer)) -> Running {
    let mut config = app.config.enqueuer.clone();
    change(&mut config);
    let stop = CancellationToken::new();
    let (health, staged) = (Arc::new(QueueHealth::new(shelf.name())), Arc::new(Notify::new()));
    let metrics = Arc::new(Metrics::default());
    let enqueuer = Enqueuer {
        poll_interval: config.poll_interval,
        relay: relay_to(shelf, app, &config, &health).await,
        health: Arc::clone(&health),
        staged: Arc::clone(&staged),
        delivered: Arc::default(),
        observer: Arc::clone(&metrics) as _,
    };
    tokio::spawn(poll(enqueuer, stop.clone()));
    Running { health, staged, metrics, _stop: stop.drop_guard() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_jobs_arrive_once_and_in_order() {
    let app = TestApp::start().await;
    stage(&app, 100_000).await;
    let shelf = FakeQueue::new(QueueBehavior::Takes);
    let _running = enqueue_to(&shelf, &app, |_| {}).await;
    app.until_count("staged_jobs", 0).await;
    assert_eq!(shelf.taken(), (1..=100_000).collect::<Vec<_>>());
}

/// A round goes on while batches are full, and takes no new one after a second; then it says that more may be due.
#[tokio::test]
async fn a_round_takes_full_batches_for_a_second() {
    let app = TestApp::start().await;
    let shelf = FakeQueue::new(QueueBehavior::Takes);
    let health = Arc::new(QueueHealth::new(shelf.name()));
    let config = config::Enqueuer { batch: 10, ..app.config.enqueuer.clone() };
    let relay = relay_to(&shelf, &app, &config, &health).await;
    for (behavior, staged, delivered, failed, more) in [
        (QueueBehavior::Takes, 9, 9, 0, false),
        (QueueBehavior::Takes, 25, 25, 0, true),
        // The second batch was claimed while the first was pushed.
        (QueueBehavior::Slow, 30, 20, 0, true),
        (QueueBehavior::Takes, 0, 10, 0, true),
        (QueueBehavior::Choosy, 30, 24, 3, true),
    ] {
        shelf.mood(behavior);
        stage(&app, staged).await;
        let relayed = relay.relay().await.unwrap();
        // Of the jobs that Choosy refuses, half are refused for good.
        assert_eq!(
            (relayed.delivered, relayed.failed, relayed.dead, relayed.more),
            (delivered, failed, failed, more),
            "{behavior:?}, {staged} staged"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_enqueuers_and_late_commits_push_nothing_twice() {
    let app = TestApp::start().await;
    let shelf = FakeQueue::new(QueueBehavior::Takes);
    let small = |config: &mut config::Enqueuer| config.batch = 100;
    let _one = enqueue_to(&shelf, &app, small).await;
    let _other = enqueue_to(&shelf, &app, small).await;
    let mut late = Vec::new();
    for _ in 0..20 {
        let client = cluster::connect(&app.database_config).await;
        client
            .batch_execute("BEGIN; INSERT INTO staged_jobs (job_name, job_args) VALUES ('late', '0')")
            .await
            .unwrap();
        late.push(client);
        stage(&app, 1000).await;
    }
    eventually("what was committed", async || (shelf.count() >= 20_000).then_some(())).await;
    for client in late {
        client.batch_execute("COMMIT").await.unwrap();
    }
    eventually("what was committed late", async || (shelf.count() >= 20_020).then_some(())).await;
    app.until_count("staged_jobs", 0).await;
    let taken = shelf.taken();
    assert_eq!((taken.len(), taken.iter().collect::<HashSet<_>>().len()), (20_020, 20_020));
}

#[tokio::test]
async fn a_queue_that_is_down_spends_no_attempts_and_is_left_alone() {
    let app = TestApp::start().await;
    let shelf = FakeQueue::new(QueueBehavior::Refuses);
    let running = enqueue_to(&shelf, &app, |config| config.batch = 100).await;
    stage(&app, 1000).await;
    let since = eventually("an outage", async || running.health.down_since()).await;
    // Rides still wake the enqueuer.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2500) {
        running.staged.notify_one();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!((2..=3).contains(&shelf.pushes()), "{} pushes", shelf.pushes());
    assert_eq!(running.health.down_since(), Some(since));
    let spent = "staged_jobs WHERE attempts > 0 OR last_error IS NOT NULL";
    assert_eq!(app.count(spent).await, 0);
    app.until_count("staged_jobs WHERE lease_token IS NULL AND next_attempt_at <= now()", 1000).await;

    shelf.mood(QueueBehavior::Takes);
    app.until_count("staged_jobs", 0).await;
    assert_eq!(running.health.down_since(), None);
    assert_eq!(shelf.taken(), (1..=1000).collect::<Vec<_>>());
    let text = running.metrics.render(&pool(&app.database_config).await, Some(&running.health)).await;
    for line in ["jobs_delivered_total{queue=\"shelf\"} 1000", "queue_up{queue=\"shelf\"} 1"] {
        assert!(text.contains(&format!("rocket_rides_{line}\n")), "{line} in {text}");
    }
}

#[tokio::test]
async fn a_queue_that_does_not_answer_is_down() {
    let app = TestApp::start().await;
    let shelf = FakeQueue::new(QueueBehavior::Hangs);
    let running = enqueue_to(&shelf, &app, |config| config.push_timeout = Duration::from_millis(50)).await;
    stage(&app, 10).await;
    eventually("an outage", async || running.health.down_since()).await;
    app.until_count("staged_jobs WHERE lease_token IS NULL AND attempts = 0", 10).await;
    shelf.mood(QueueBehavior::Takes);
    app.until_count("staged_jobs", 0).await;
    assert_eq!(shelf.taken(), (1..=10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_refused_job_is_tried_later_and_later_and_then_dies() {
    let app = TestApp::start().await;
    let shelf = FakeQueue::new(QueueBehavior::Choosy);
    let _running = enqueue_to(&shelf, &app, |config| {
        config.max_attempts = 3;
        config.retry_after = Duration::from_secs(3600);
    })
    .await;
    stage(&app, 10).await;
    app.until_count("staged_jobs", 1).await;
    assert_eq!(shelf.taken(), (3..=10).collect::<Vec<_>>());
    let dead = app.query("SELECT staged_id, error FROM dead_jobs", &[]).await;
    assert_eq!((dead.len(), dead[0].get::<_, i64>(0), dead[0].get::<_, &str>(1)), (1, 2, "never"));
    for attempts in 1..=2 {
        let waits = format!(
            "staged_jobs WHERE id = 1 AND attempts = {attempts} AND last_error = 'nottoday' AND lease_token IS NULL
             AND next_attempt_at BETWEEN now() + interval '30 minutes' AND now() + interval '75 minutes'"
        );
        app.until_count(&waits, 1).await;
        app.execute("UPDATE staged_jobs SET next_attempt_at = now()").await;
    }
    app.until_count("staged_jobs", 0).await;
    let last = app.query("SELECT error, attempts FROM dead_jobs WHERE staged_id = 1", &[]).await;
    assert_eq!(last[0].get::<_, &str>(0), "gave up after 3 attempts: nottoday");
    assert_eq!(last[0].get::<_, i32>(1), 3);
}

#[tokio::test]
async fn a_lost_lease_settles_nothing() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    stage(&app, 3).await;
    let stale = outbox::claim(&database, BEFORE_FIRST, 10, Duration::ZERO).await.unwrap();
    let lease = Duration::from_secs(60);
    let holder = outbox::claim(&database, BEFORE_FIRST, 10, lease).await.unwrap();
    assert_eq!((stale.jobs.len(), holder.jobs.len()), (3, 3));
    assert!(outbox::claim(&database, BEFORE_FIRST, 10, lease).await.unwrap().jobs.is_empty());

    let mut verdicts = PushResults { delivered: vec![1], ..PushResults::default() };
    verdicts.failed.push(2, "failed");
    verdicts.dead.push(3, "dead");
    let settled = outbox::settle(&database, &stale, &verdicts, lease).await.unwrap();
    assert_eq!((settled.delivered, settled.failed, settled.dead), (0, 0, 0));
    assert_eq!(app.count("staged_jobs WHERE attempts = 0 AND next_attempt_at > now()").await, 3);
    assert_eq!(app.count("dead_jobs").await, 0);
    let settled = outbox::settle(&database, &holder, &verdicts, lease).await.unwrap();
    assert_eq!((settled.delivered, settled.failed, settled.dead), (1, 1, 1));
    assert_eq!((app.count("staged_jobs").await, app.count("dead_jobs").await), (1, 1));
}
