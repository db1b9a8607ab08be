//! The engine's own statements: a request looks up its key, takes a lease over, and ends it.

use atomic_phases::database::Database;
use atomic_phases::idempotency::open::Opened;
use atomic_phases::idempotency::settle::{park, release};
use atomic_phases::idempotency::{Job, Lease, Request, Response};
use serde_json::{Value, json};
use tokio_postgres::types::Json;
use uuid::Uuid;

use super::{Case, Stage, WaitsFor, refusal};
use crate::support::app::TestApp;
use crate::support::client::new_key;
use crate::support::keys::{self, LOCK, PlainState, lease, plain, request};

const KEYS: WaitsFor = WaitsFor::Row("idempotency_keys", "id");
const KEY: (&str, &str) = ("idempotency_keys", "id");

/// Returns a response that no other request has.
fn response() -> Response {
    Response::new(201, format!(r#"{{"message": "{}"}}"#, Uuid::new_v4()))
}

/// Returns a new request, with parameters that no other request has.
fn new_request() -> Request<Value> {
    let mark = Uuid::new_v4().to_string();
    Request { params: json!({ "mark": mark }), path: format!("/{mark}"), ..request(&new_key()) }
}

/// Opens the request. Returns the outcome as text, with the request that the row holds if it is another one.
async fn ask(database: &Database, request: &Request<Value>) -> String {
    const ROW: &str =
        "SELECT idempotency_key, user_id, request_method, request_path, request_params, host(origin_ip) AS ip
                       FROM idempotency_keys WHERE id = $1 AND lease_token = $2";
    match plain(database).open(request).await {
        Ok(Opened::Lease(lease)) => {
            let row =
                database.query_opt(ROW, &[&lease.key_id, &lease.token]).await.unwrap().expect("a lease on a row");
            let of = Request {
                user_id: row.get("user_id"),
                key: row.get::<_, &str>("idempotency_key").parse().unwrap(),
                method: row.get("request_method"),
                path: row.get("request_path"),
                params: row.get::<_, Json<_>>("request_params").0,
                origin_ip: row.get::<_, &str>("ip").parse().unwrap(),
            };
            let attempt = lease.attempts;
            if of == *request { format!("attempt {attempt}") } else { format!("attempt {attempt} at {of:?}") }
        }
        Ok(Opened::Finished { key_id, response }) => format!("{key_id} finished: {}", response.body),
        Ok(Opened::Mismatch { key_id }) => format!("{key_id} mismatched"),
        Ok(Opened::InProgress { key_id }) => format!("{} in progress", key_id.unwrap_or_default()),
        Ok(Opened::Parked { key_id }) => format!("{key_id} parked"),
        Ok(Opened::Refused { refusal }) => format!("not admitted: {refusal}"),
        Err(error) => refusal(&error),
    }
}

/// A request, and the outcome that its key must give.
pub(super) struct Asks {
    pub(super) request: Request<Value>,
    expected: String,
}

impl Case for Asks {
    const COVERS: &'static str = "idempotency/open.rs: Opening";
    const WAITS_FOR: WaitsFor = WaitsFor::Table("idempotency_keys");
    const WRITES: Option<(&'static str, &'static str)> = Some(KEY);

    async fn caller(stage: &Stage, n: usize) -> Self {
        let database = &stage.database;
        let request = new_request();
        let kind = n % 10;
        if kind == 0 {
            return Self { request, expected: "attempt 1".to_owned() };
        }
        if kind == 9 {
            let request = Request { params: json!({ "refusal": request.path }), ..request };
            let expected = format!("not admitted: {}", request.path);
            return Self { request, expected };
        }
        let lease = lease(database, &request).await;
        let key_id = lease.key_id;
        let (request, says) = match kind {
            1 => {
                let response = response();
                assert!(keys::finish(database, &lease, &response, &[]).await.unwrap());
                (request, format!("{key_id} finished: {}", response.body))
            }
            2 => {
                park(database, &lease, "for a test").await.unwrap();
                (request, format!("{key_id} parked"))
            }
            3 => (request, format!("{key_id} in progress")),
            4 => (Request { params: json!({}), ..request }, format!("{key_id} mismatched")),
            5 => (Request { path: "/elsewhere".to_owned(), ..request }, format!("{key_id} mismatched")),
            6 => (Request { method: "PUT".to_owned(), ..request }, format!("{key_id} mismatched")),
            // Where a request comes from does not matter.
            7 => (Request { origin_ip: [10, 0, 0, 1].into(), ..request }, format!("{key_id} in progress")),
            // The same key of another user is another key.
            _ => (Request { user_id: 2, ..request }, "attempt 1".to_owned()),
        };
        Self { request, expected: says }
    }

    async fn refused(_: &Stage) -> Option<Self> {
        let request = Request { params: json!({ "mark": "\0" }), ..new_request() };
        Some(Self { request, expected: "refused".to_owned() })
    }

    async fn call(&self, database: &Database) -> String {
        ask(database, &self.request).await
    }

    fn expected(&self) -> String {
        self.expected.clone()
    }

    async fn check(&self, app: &TestApp) -> Option<i64> {
        let sql = "SELECT id FROM idempotency_keys WHERE user_id = $1 AND idempotency_key = $2";
        let rows = app.query(sql, &[&self.request.user_id, &self.request.key.as_str()]).await;
        let written = self.expected != "refused" && !self.expected.starts_with("not admitted");
        assert_eq!(rows.len(), usize::from(written));
        let new = self.expected == "attempt 1";
        rows.first().filter(|_| new).map(|row| row.get("id"))
    }
}

/// A repetition that finds the key free, and what happens to the key before the repetition has the lease.
pub(super) struct TakesOver {
    request: Request<Value>,
    key_id: i64,
    meanwhile: Option<String>,
    expected: String,
}

impl Case for TakesOver {
    const COVERS: &'static str = "idempotency/open.rs: TakingOver";
    const WAITS_FOR: WaitsFor = KEYS;
    const WRITES: Option<(&'static str, &'static str)> = Some(KEY);

    async fn caller(stage: &Stage, n: usize) -> Self {
        let request = new_request();
        let lease = lease(&stage.database, &request).await;
        let key_id = lease.key_id;
        if n % 6 == 1 {
            let sql = "UPDATE idempotency_keys SET locked_at = now() - make_interval(secs => $2) WHERE id = $1";
            stage.app.query(sql, &[&key_id, &LOCK.as_secs_f64()]).await;
        } else {
            release(&stage.database, &lease, "for a test").await.unwrap();
        }
        let (change, expected) = match n % 6 {
            0 | 1 => (None, "attempt 2".to_owned()),
            2 => (Some("SET lease_token = gen_random_uuid(), locked_at = now()"), format!("{key_id} in progress")),
            3 => (
                Some("SET recovery_point = 'finished', step = 32767, response_code = 201, response_body = '{}'"),
                format!("{key_id} finished: {{}}"),
            ),
            4 => (Some("SET parked_at = now(), parked_reason = 'meanwhile'"), format!("{key_id} parked")),
            _ => (None, "attempt 1".to_owned()),
        };
        let meanwhile = match change {
            Some(change) => Some(format!("UPDATE idempotency_keys {change} WHERE id = {key_id}")),
            None if n % 6 == 5 => Some(format!("DELETE FROM idempotency_keys WHERE id = {key_id}")),
            None => None,
        };
        Self { request, key_id, meanwhile, expected }
    }

    fn meanwhile(&self) -> Option<String> {
        self.meanwhile.clone()
    }

    async fn call(&self, database: &Database) -> String {
        ask(database, &self.request).await
    }

    fn expected(&self) -> String {
        self.expected.clone()
    }

    fn locks(&self) -> i64 {
        self.key_id
    }

    async fn check(&self, _: &TestApp) -> Option<i64> {
        (self.expected == "attempt 2").then_some(self.key_id)
    }
}

/// A lease, and whether it still permits what its holder wants to write.
struct Held {
    lease: Lease,
    good: bool,
}

impl Held {
    async fn new(stage: &Stage, n: usize) -> Self {
        let lease = lease(&stage.database, &new_request()).await;
        match n % 5 {
            0 | 1 => Self { lease, good: true },
            2 => Self { lease: Lease { token: Uuid::new_v4(), ..lease }, good: false },
            3 => Self { lease: Lease { key_id: -lease.key_id, ..lease }, good: false },
            _ => {
                release(&stage.database, &lease, "before").await.unwrap();
                Self { lease, good: false }
            }
        }
    }
}

/// A request that goes on to its next foreign call.
pub(super) struct Advances(Held);

impl Case for Advances {
    const COVERS: &'static str = "idempotency/phase.rs: Advancing";
    const WAITS_FOR: WaitsFor = KEYS;
    const WRITES: Option<(&'static str, &'static str)> = Some(KEY);

    async fn caller(stage: &Stage, n: usize) -> Self {
        let mut held = Held::new(stage, n).await;
        // A recovery point that the key has left.
        if n % 7 == 6 {
            held = Held { lease: Lease { step: 2, ..held.lease }, good: false };
        }
        Self(held)
    }

    async fn call(&self, database: &Database) -> String {
        let mut lease = self.0.lease.clone();
        let half_way = PlainState::HalfWay { of: lease.key_id };
        match plain(database).advance(&mut lease, &half_way, Value::Null).await {
            Ok(false) => "lost".to_owned(),
            Ok(true) => {
                let row = "SELECT foreign_call_key, foreign_call_intended_at FROM idempotency_keys WHERE id = $1";
                let row = database.query_opt(row, &[&lease.key_id]).await.unwrap().expect("its row");
                let call = (lease.foreign_call.key, lease.foreign_call.intended_at);
                let same = call == (row.get(0), row.get(1)) && call.0 != self.0.lease.foreign_call.key;
                format!("advanced to {}, its own call: {same}", lease.recovery_point)
            }
            Err(error) => refusal(&error),
        }
    }

    fn expected(&self) -> String {
        if self.0.good { "advanced to half_way, its own call: true" } else { "lost" }.to_owned()
    }

    fn locks(&self) -> i64 {
        self.0.lease.key_id
    }

    async fn check(&self, app: &TestApp) -> Option<i64> {
        let key_id = self.0.lease.key_id;
        let advanced = "SELECT FROM idempotency_keys
                        WHERE id = $1 AND recovery_point = 'half_way' AND step = 2 AND state = jsonb_build_object('of', id)";
        assert_eq!(app.query(advanced, &[&key_id]).await.len(), usize::from(self.0.good));
        self.0.good.then_some(key_id)
    }
}

/// A request that is answered, with jobs or without.
pub(super) struct Finishes {
    held: Held,
    response: Response,
    jobs: Vec<Job>,
    refused: bool,
}

impl Case for Finishes {
    const COVERS: &'static str = "idempotency/phase.rs: Closing";
    const WAITS_FOR: WaitsFor = KEYS;
    const WRITES: Option<(&'static str, &'static str)> = Some(KEY);

    async fn caller(stage: &Stage, n: usize) -> Self {
        let mut held = Held::new(stage, n).await;
        // A recovery point that the key has left.
        if n % 7 == 6 {
            held = Held { lease: Lease { step: 2, ..held.lease }, good: false };
        }
        let job = Job { name: "a_job", args: json!({ "of": held.lease.token.to_string() }) };
        Self { held, response: response(), jobs: vec![job; n % 3], refused: false }
    }

    async fn refused(stage: &Stage) -> Option<Self> {
        let response = Response { body: "no JSON".to_owned(), ..response() };
        Some(Self { response, refused: true, ..Self::caller(stage, 1).await })
    }

    async fn call(&self, database: &Database) -> String {
        match keys::finish(database, &self.held.lease, &self.response, &self.jobs).await {
            Ok(finished) => format!("finished {finished}"),
            Err(error) => refusal(&error),
        }
    }

    fn expected(&self) -> String {
        if self.refused { "refused".to_owned() } else { format!("finished {}", self.held.good) }
    }

    fn locks(&self) -> i64 {
        self.held.lease.key_id
    }

    async fn check(&self, app: &TestApp) -> Option<i64> {
        let finished = self.held.good && !self.refused;
        let (key_id, token) = (self.held.lease.key_id, self.held.lease.token.to_string());
        let answered = "SELECT FROM idempotency_keys WHERE id = $1 AND recovery_point = 'finished' AND step = 32767
                        AND response_code = 201 AND response_body::text = $2 AND last_error IS NULL";
        assert_eq!(app.query(answered, &[&key_id, &self.response.body]).await.len(), usize::from(finished));
        let staged = "SELECT FROM staged_jobs WHERE job_name = 'a_job' AND job_args ->> 'of' = $1";
        let jobs = if finished { self.jobs.len() } else { 0 };
        assert_eq!(app.query(staged, &[&token]).await.len(), jobs);
        finished.then_some(key_id)
    }
}

/// An attempt that failed.
pub(super) struct Releases {
    held: Held,
    error: String,
}

impl Case for Releases {
    const COVERS: &'static str = "idempotency/settle.rs: Release";
    const WAITS_FOR: WaitsFor = KEYS;
    const WRITES: Option<(&'static str, &'static str)> = Some(KEY);

    async fn caller(stage: &Stage, n: usize) -> Self {
        Self { held: Held::new(stage, n).await, error: Uuid::new_v4().to_string() }
    }

    async fn refused(stage: &Stage) -> Option<Self> {
        Some(Self { error: "\0".to_owned(), ..Self::caller(stage, 0).await })
    }

    async fn call(&self, database: &Database) -> String {
        release(database, &self.held.lease, &self.error)
            .await
            .map_or_else(|error| refusal(&error), |()| "done".to_owned())
    }

    fn expected(&self) -> String {
        if self.error == "\0" { "refused".to_owned() } else { "done".to_owned() }
    }

    fn locks(&self) -> i64 {
        self.held.lease.key_id
    }

    async fn check(&self, app: &TestApp) -> Option<i64> {
        if self.error == "\0" {
            return None;
        }
        let key_id = self.held.lease.key_id;
        let released = "SELECT FROM idempotency_keys WHERE id = $1 AND last_error = $2 AND lease_token IS NULL";
        assert_eq!(app.query(released, &[&key_id, &self.error]).await.len(), usize::from(self.held.good));
        self.held.good.then_some(key_id)
    }
}
