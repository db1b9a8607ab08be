//! The shop is killed, and cut off, at each message that it sends; every order is paid for and shipped exactly once.

// These modules are the program's own test support, of which this test uses a part.
#[allow(dead_code)]
#[path = "../../../../tests/chaos/proxy.rs"]
mod proxy;
#[allow(dead_code)]
mod support;
#[allow(dead_code)]
#[path = "../../../../tests/wire/mod.rs"]
mod wire;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use atomic_phases::database::{Database, PoolSettings, tls};
use atomic_phases::rules::{self, Check, Circumstances, Rule};
use axum::extract::{Json, State};
use axum::http::HeaderMap;
use axum::routing::post;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy::{Boundary, Fault, Proxy, Script, Strike};
use serde_json::{Value, json};
use support::cluster;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// What a bank or a carrier has done, by the idempotency keys of the calls.
type Done = Arc<Mutex<HashMap<String, Value>>>;

/// Starts a bank or a carrier, which acts once for each idempotency key and declines one card.
async fn serve() -> (SocketAddr, Done) {
    async fn once(State(done): State<Done>, headers: HeaderMap, Json(asked): Json<Value>) -> Json<Value> {
        if asked["card"] == "declined" {
            return Json(json!({}));
        }
        let key = headers["idempotency-key"].to_str().unwrap().to_owned();
        let mut done = done.lock().unwrap();
        let id = format!("{}-{}", if asked["card"].is_null() { "parcel" } else { "payment" }, Uuid::new_v4());
        Json(done.entry(key).or_insert_with(|| json!({ "id": id })).clone())
    }
    let done = Done::default();
    let router = axum::Router::new().route("/", post(once)).with_state(Arc::clone(&done));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, done)
}

/// The shop and all that it talks to, each behind a proxy that follows one script.
struct CrashRig {
    script: Script,
    postgres: Proxy,
    bank: (Proxy, Done),
    carrier: (Proxy, Done),
    server: tokio_postgres::Config,
    database: Database,
    shop: Option<(Child, SocketAddr)>,
}

impl CrashRig {
    async fn new() -> Self {
        let (script, server) = (Script::default(), cluster::database().await);
        let ((bank, paid), (carrier, sent)) = (serve().await, serve().await);
        let database = Database::connect(server.clone(), tls::none(), PoolSettings::new("test")).await.unwrap();
        Self {
            postgres: Proxy::postgres(&script, &server).await,
            bank: (Proxy::stripe(&script, bank).await, paid),
            carrier: (Proxy::stripe(&script, carrier).await, sent),
            server,
            database,
            script,
            shop: None,
        }
    }

    /// Returns the shop's address; starts the shop if it does not run.
    async fn shop(&mut self) -> SocketAddr {
        if let Some((child, address)) = &mut self.shop
            && child.try_wait().unwrap().is_none()
        {
            return *address;
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_shop"))
            .env("DATABASE_URL", self.postgres.postgres_url(&self.server))
            .env("BANK", self.bank.0.stripe_url())
            .env("CARRIER", self.carrier.0.stripe_url())
            .env("LISTEN", "127.0.0.1:0")
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
        self.script.aim(move || {
            let _ = kill(pid, Signal::SIGKILL);
        });
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next_line().await.unwrap().expect("it starts");
            if let Some(address) = line.strip_prefix("listening on ") {
                break address.parse().unwrap();
            }
        };
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.shop = Some((child, address));
        address
    }

    async fn age(&self) {
        let sql = "UPDATE idempotency_keys SET locked_at = now() - interval '1 hour', next_attempt_at = now()
                   WHERE response_code IS NULL AND locked_at <= now() - interval '250 ms'";
        self.database.script(sql).await.unwrap();
    }

    /// Places an order, and repeats the request until there is a final answer.
    async fn order(&mut self, product: i64, card: &str) -> (u16, String) {
        let (key, client, began) = (Uuid::new_v4().to_string(), reqwest::Client::new(), Instant::now());
        let order = json!({ "product_id": product, "card": card, "address": "1 Main Street" });
        loop {
            let url = format!("http://{}/orders", self.shop().await);
            let asked = client.post(url).header("Idempotency-Key", &key).header("X-Customer", "7").json(&order);
            if let Ok(answer) = asked.send().await {
                let (status, body) = (answer.status().as_u16(), answer.text().await.unwrap_or_default());
                if matches!(status, 201 | 402) || body == "sold out" {
                    return (status, body);
                }
                assert!(status == 503 || body.starts_with("Being worked on"), "{status}: {body}");
            }
            assert!(began.elapsed() < PATIENCE, "no final answer");
            tokio::time::sleep(PAUSE).await;
            self.age().await;
        }
    }

    /// Returns how many payments, parcels and orders there are, and how much stock is left.
    async fn books(&self) -> (usize, usize, i64, i64) {
        let sql = "SELECT count(*), count(payment) + count(parcel), (SELECT sum(stock) FROM products) FROM orders";
        let row = &self.database.query(sql, &[]).await.unwrap()[0];
        let (orders, known): (i64, i64) = (row.get(0), row.get(1));
        let (paid, sent) = (self.bank.1.lock().unwrap().len(), self.carrier.1.lock().unwrap().len());
        assert_eq!(known, i64::try_from(paid + sent).unwrap(), "the books say what the others have done");
        (paid, sent, orders, row.get(2))
    }

    async fn assert_sound(&self) {
        let order = Rule::rows("orders", include_str!("../../src/rule.sql"));
        let rules = [rules::engine(), rules::queue(), vec![order]].concat();
        let circumstances = Circumstances { at_rest: true, jobs_stay: true };
        let report = Check { database: &self.database, circumstances }.ask(&rules).await.unwrap();
        assert!(report.violated().is_empty(), "{report}");
    }
}

/// Returns what an order sends, without the completer's statements and those that open connections of the growing pool.
fn order_messages(crossed: Vec<Boundary>) -> Vec<Boundary> {
    let beside = |label: &str| label.ends_with("update idempotency_keys") || label.starts_with("query SET");
    crossed.into_iter().filter(|boundary| !beside(&boundary.label)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_survives_a_crash_at_every_step() {
    let mut rig = CrashRig::new().await;
    rig.shop().await;
    rig.script.arm(Vec::new());
    assert_eq!(rig.order(1, "good").await.0, 201);
    let boundaries = order_messages(rig.script.disarm().0);
    let mut before = rig.books().await;
    assert_eq!(before, (1, 1, 1, 1000));
    let mut runs = 0;
    for n in 0..boundaries.len() {
        for fault in Fault::BREAKING.into_iter().filter(|fault| fault.fits(&boundaries[n])) {
            // A new process, so that statements are prepared again.
            if let Some((mut child, _)) = rig.shop.take() {
                child.kill().await.unwrap();
            }
            rig.shop().await;
            rig.script.arm(vec![Strike::at_last_of(&boundaries[..=n], fault)]);
            let answer = rig.order(1, "good").await;
            let (_, fired) = rig.script.disarm();
            assert_eq!((answer.0, fired.len()), (201, 1), "{fault:?} at {}", boundaries[n]);
            let (paid, sent, orders, stock) = before;
            let after = rig.books().await;
            assert_eq!(after, (paid + 1, sent + 1, orders + 1, stock - 1), "{fault:?} at {}", boundaries[n]);
            before = after;
            runs += 1;
        }
    }
    println!("{} boundaries, {runs} runs", boundaries.len());
    assert!(boundaries.len() >= 5, "{boundaries:#?}");
    rig.assert_sound().await;
}

#[tokio::test]
async fn a_declined_card_puts_the_product_back() {
    let mut rig = CrashRig::new().await;
    assert_eq!(rig.order(2, "declined").await.0, 402);
    assert_eq!(rig.books().await, (0, 0, 1, 1001));
    rig.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_one_is_sold_once() {
    let mut rig = CrashRig::new().await;
    let shop = rig.shop().await;
    let order = |_| {
        let order = json!({ "product_id": 2, "card": "good", "address": "1 Main Street" });
        let asked = reqwest::Client::new().post(format!("http://{shop}/orders"));
        let key = Uuid::new_v4().to_string();
        tokio::spawn(asked.header("Idempotency-Key", key).header("X-Customer", "7").json(&order).send())
    };
    let mut statuses = Vec::new();
    for answer in (0..20).map(order).collect::<Vec<_>>() {
        statuses.push(answer.await.unwrap().unwrap().status().as_u16());
    }
    statuses.sort_unstable();
    assert_eq!((statuses[0], &statuses[1..]), (201, &[409; 19][..]));
    assert_eq!(rig.books().await, (1, 1, 1, 1000));
    rig.assert_sound().await;
}
