//! A shop that takes each order once: `POST /orders`, with an `Idempotency-Key`, for the customer in `X-Customer`.

mod order;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atomic_phases::database::{Database, PoolSettings, tls};
use atomic_phases::errors::chain;
use atomic_phases::idempotency::{Answer, Engine, Executor, IdempotencyKey, Operations, Request};
use atomic_phases::processes::{self, Process};
use atomic_phases::roles::completer::{self, Completer};
use atomic_phases::roles::heart::Heart;
use atomic_phases::roles::periodic::{Periodic, poll};
use axum::extract::{ConnectInfo, Json, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use order::{OrderParams, Orders};
use tokio_util::sync::CancellationToken;

/// The longest that a foreign call takes.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that a process which hangs keeps a request from others.
const LEASE: Duration = Duration::from_secs(30);

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (address, tls) = tls::parse(&std::env::var("DATABASE_URL")?)?;
    let database = Database::connect(address, tls, PoolSettings::new("shop")).await?;
    if database.query("SELECT WHERE to_regclass('orders') IS NULL", &[]).await?.len() == 1 {
        database.script(&[atomic_phases::SCHEMA, include_str!("../schema.sql")].concat()).await?;
    }
    let http = reqwest::Client::builder().timeout(TIMEOUT).build()?;
    let orders = Orders { http, bank: std::env::var("BANK")?, carrier: std::env::var("CARRIER")? };

    let settings = completer::Settings::default();
    let process = Process::new(None, env!("CARGO_PKG_VERSION"));
    let database = database.of_process(process.id);
    let heart = Heart::new(&database, process, processes::Settings::default(), settings.crash_grace);
    heart.run_once().await?;
    tokio::spawn(poll(heart, CancellationToken::new()));

    let orders = Executor::new(Engine::new(database.clone(), LEASE, settings.grace), orders);
    let mut operations = Operations::default();
    operations.register(orders.clone());
    operations.check_points(&database).await?;
    let completer = Completer { database, operations, settings, lock_timeout: LEASE, handed_back: Arc::default() };
    tokio::spawn(poll(completer, CancellationToken::new()));

    let listener = tokio::net::TcpListener::bind(std::env::var("LISTEN")?).await?;
    eprintln!("listening on {}", listener.local_addr()?);
    let shop = axum::Router::new().route("/orders", post(place)).with_state(Arc::new(orders));
    Ok(axum::serve(listener, shop.into_make_service_with_connect_info::<SocketAddr>()).await?)
}

/// The one mapping from answers to statuses.
async fn place(
    State(orders): State<Arc<Executor<Orders>>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Json(params): Json<OrderParams>,
) -> (StatusCode, String) {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (Ok(key), Ok(user_id)) =
        (header("idempotency-key").parse::<IdempotencyKey>(), header("x-customer").parse())
    else {
        return (StatusCode::BAD_REQUEST, "Idempotency-Key and X-Customer, please".to_owned());
    };
    let (method, path) = ("POST".to_owned(), "/orders".to_owned());
    let request = Request { user_id, key, method, path, params, origin_ip: peer.ip() };
    // A client that hangs up cancels nothing.
    let executed = tokio::spawn(async move { orders.execute(request).await }).await.expect("no panic");
    match executed.answer {
        Answer::Done { response, .. } => (StatusCode::from_u16(response.code).expect("ours"), response.body),
        Answer::Refused(why) => (StatusCode::CONFLICT, why),
        Answer::Mismatch => (StatusCode::CONFLICT, "This key belongs to another order.".to_owned()),
        Answer::InProgress => (StatusCode::CONFLICT, "Being worked on; ask again.".to_owned()),
        Answer::Parked => (StatusCode::SERVICE_UNAVAILABLE, "A person is looking at this order.".to_owned()),
        Answer::Stopped(stop) => {
            eprintln!("{}", chain(&stop));
            (StatusCode::SERVICE_UNAVAILABLE, "Not done yet; ask again with the same key.".to_owned())
        }
    }
}
