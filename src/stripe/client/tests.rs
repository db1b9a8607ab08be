use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt, stream};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use std::time::{SystemTime, UNIX_EPOCH};

use super::lists::{CLOCK_MARGIN, MAX_PAGES, PAGE};
use super::*;
use crate::http::{Limits, json, serve};
use crate::stripe::LookupError;
use crate::stripe::sandbox::{ChargeStatus, Fault, Faults};
use crate::stripe::testing::{LONG_TIMEOUT, Rig, SHORT_TIMEOUT, charge_of, client, free_port};

/// The outcome's variant and, if it has one, its cause, without the details.
fn kind(outcome: &ChargeOutcome) -> String {
    match outcome {
        ChargeOutcome::Charged { .. } => "charged".to_owned(),
        ChargeOutcome::Declined { .. } => "declined".to_owned(),
        ChargeOutcome::NotSent(NotSent::Connect(_)) => "not sent: connect".to_owned(),
        ChargeOutcome::NotSent(NotSent::TimedOut(_)) => "not sent: timed out".to_owned(),
        ChargeOutcome::Unknown(Unknown::TimedOut(_)) => "unknown: timed out".to_owned(),
        ChargeOutcome::Unknown(Unknown::NoAnswer(_)) => "unknown: no answer".to_owned(),
        ChargeOutcome::Unknown(Unknown::Truncated { .. }) => "unknown: truncated".to_owned(),
        ChargeOutcome::Unknown(Unknown::TooLong { .. }) => "unknown: too long".to_owned(),
        ChargeOutcome::Unknown(Unknown::Garbled { .. }) => "unknown: garbled".to_owned(),
        ChargeOutcome::Unknown(Unknown::NotSucceeded { .. }) => "unknown: not succeeded".to_owned(),
        ChargeOutcome::Unknown(Unknown::Failed(reply)) => format!("unknown: {}", reply.status.as_u16()),
        ChargeOutcome::Refused(reply) => format!("refused: {}", reply.status.as_u16()),
    }
}

#[tokio::test]
async fn whatever_goes_wrong_a_retry_with_the_same_key_charges_once() {
    let rig = Rig::start().await;
    let customer = rig.customer().await;
    for (fault, expected, charged_already) in [
        (Fault::None, "charged", true),
        (Fault::Reset, "unknown: no answer", false),
        (Fault::ServerError, "unknown: 500", false),
        (Fault::RateLimited, "refused: 429", false),
        // It is sent again by itself.
        (Fault::Conflict, "charged", true),
        (Fault::BadRequest, "refused: 400", false),
        (Fault::Unauthorized, "refused: 401", false),
        (Fault::Forbidden, "refused: 403", false),
        (Fault::ChargedThenServerError, "unknown: 500", true),
        (Fault::ReplyLost, "unknown: no answer", true),
        (Fault::Truncated, "unknown: truncated", true),
        (Fault::NoId, "unknown: garbled", true),
    ] {
        let before = rig.ledger.charges().len();
        let charge = charge_of(&customer);
        rig.faults.script([fault]);
        let outcome = rig.client.charge(&charge).await;
        assert_eq!(kind(&outcome), expected, "{fault:?}");
        assert_eq!(rig.ledger.charges().len() - before, usize::from(charged_already), "{fault:?}");

        let ChargeOutcome::Charged { charge_id } = rig.client.charge(&charge).await else {
            panic!("the retry after {fault:?} was not charged");
        };
        let charges = rig.ledger.charges();
        assert_eq!(charges.len() - before, 1, "{fault:?}");
        assert_eq!(charges[before].id, charge_id, "{fault:?}");
        assert_eq!(charges[before].terms.metadata.get(KEY_METADATA), Some(&*charge.idempotency_key.to_string()));
        assert_eq!(charges[before].status, ChargeStatus::Succeeded, "{fault:?}");
    }
}

#[tokio::test]
async fn a_late_reply_leaves_it_open_and_a_retry_learns_the_truth() {
    let rig = Rig::start().await;
    let charge = charge_of(&rig.customer().await);
    rig.faults.script([Fault::SlowReply]);
    assert_eq!(kind(&rig.hasty_client().charge(&charge).await), "unknown: timed out");
    assert_eq!(kind(&rig.client.charge(&charge).await), "charged");
    assert_eq!(rig.ledger.charges().len(), 1);
}

#[tokio::test]
async fn latency_delays_the_charge_itself() {
    let rig = Rig::start().await;
    let charge = charge_of(&rig.customer().await);
    rig.faults.set(Faults { latency: LONG_TIMEOUT, ..Faults::default() });
    assert_eq!(kind(&rig.hasty_client().charge(&charge).await), "unknown: timed out");
    assert_eq!(rig.ledger.charges().len(), 0);
    let again = rig.hasty_client().charge(&charge).await;
    assert_eq!(kind(&again), "refused: 409", "the first request is still in progress at the deadline");
    rig.stop().await;
}

#[tokio::test]
async fn a_key_that_is_in_use_is_waited_for() {
    let rig = Rig::start().await;
    let charge = charge_of(&rig.customer().await);
    rig.faults.script([Fault::Hold]);
    assert_eq!(kind(&rig.hasty_client().charge(&charge).await), "unknown: timed out");
    let release = async {
        // Meanwhile it has been told at least once that the key is in use.
        tokio::time::sleep(FIRST_PAUSE / 2).await;
        rig.faults.release();
    };
    let (outcome, ()) = tokio::join!(rig.client.charge(&charge), release);
    assert_eq!(kind(&outcome), "charged");
    assert_eq!(rig.ledger.charges().len(), 1);
}

#[tokio::test]
async fn a_client_that_hangs_up_is_charged_all_the_same() {
    let rig = Rig::start().await;
    let charge = charge_of(&rig.customer().await);
    rig.faults.script([Fault::Hold]);
    assert_eq!(kind(&rig.hasty_client().charge(&charge).await), "unknown: timed out");
    assert_eq!(rig.ledger.charges().len(), 0);
    rig.faults.release();
    while rig.ledger.charges().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(kind(&rig.client.charge(&charge).await), "charged");
    assert_eq!(rig.ledger.charges().len(), 1);
}

#[tokio::test]
async fn a_decline_is_final() {
    let rig = Rig::start().await;
    let bad = rig.client.create_customer("user-bad-source@example.com", "tok_chargeCustomerFail", Uuid::new_v4());
    let by_card = charge_of(&bad.await.expect("a customer"));
    let by_chance = charge_of(&rig.customer().await);
    rig.faults.script([Fault::None, Fault::Declined]);
    for charge in [&by_card, &by_chance, &by_card, &by_chance] {
        match rig.client.charge(charge).await {
            ChargeOutcome::Declined { message } => assert_eq!(message, "Your card was declined."),
            other => panic!("{other:?}"),
        }
    }
    let charges = rig.ledger.charges();
    assert_eq!(charges.len(), 2);
    assert!(charges.iter().all(|charge| charge.status == ChargeStatus::Failed));
}

#[tokio::test]
async fn a_charge_of_nobody_is_refused() {
    let rig = Rig::start().await;
    let ChargeOutcome::Refused(reply) = rig.client.charge(&charge_of("cus_nobody")).await else {
        panic!("not refused");
    };
    assert_eq!((reply.status.as_u16(), reply.code.as_str()), (400, "resource_missing"));
    assert!(reply.request_id.starts_with("req_"), "{reply}");
}

#[tokio::test]
async fn not_sent_is_claimed_only_when_it_is_certain() {
    let charge = charge_of("cus_anybody");
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = silent.local_addr().expect("a bound socket");
    // The kernel takes the connection, but no server answers. A TLS handshake cannot end, so nothing was sent; a plain
    // request is on its way.
    let tls = client(&format!("https://{address}"), SHORT_TIMEOUT).charge(&charge).await;
    assert_eq!(kind(&tls), "not sent: timed out");
    let plain = client(&format!("http://{address}"), SHORT_TIMEOUT).charge(&charge).await;
    assert_eq!(kind(&plain), "unknown: timed out");
    drop(silent);
    let refused = client(&format!("http://{address}"), LONG_TIMEOUT).charge(&charge).await;
    assert_eq!(kind(&refused), "not sent: connect");

    let rig = Rig::start().await;
    let no_tls = client(&format!("https://{}", rig.address), LONG_TIMEOUT).charge(&charge).await;
    assert_eq!(kind(&no_tls), "not sent: connect");
}

/// A client of a server that answers everything with `status` and `body`, and the number of requests that it got.
async fn client_of(status: u16, body: &'static str) -> (Client, Arc<AtomicUsize>, AbortOnDropHandle<()>) {
    let listener = free_port().await;
    let address = listener.address();
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let limits = Limits { connections: 8, head_timeout: LONG_TIMEOUT };
    let server = tokio::spawn(async move {
        serve(&listener, limits, CancellationToken::new(), move |_, _| {
            counted.fetch_add(1, Ordering::Relaxed);
            let mut response = json(StatusCode::from_u16(status).expect("a status"), body);
            response.headers_mut().insert("location", HeaderValue::from_static("/elsewhere"));
            std::future::ready(Ok(response))
        })
        .await;
    });
    (client(&format!("http://{address}/proxied/"), LONG_TIMEOUT), requests, AbortOnDropHandle::new(server))
}

async fn charge_at(status: u16, body: &'static str) -> (ChargeOutcome, usize) {
    let (client, requests, _server) = client_of(status, body).await;
    let outcome = client.charge(&charge_of("cus_anybody")).await;
    (outcome, requests.load(Ordering::Relaxed))
}

#[tokio::test]
async fn answers_that_only_look_like_stripes_decide_nothing() {
    let too_long: &'static str = " ".repeat(5 * 1024 * 1024).leak();
    for (status, body, expected) in [
        (200, "<html>Welcome to the hotel</html>", "unknown: garbled"),
        (200, r#"{"id": "", "status": "succeeded"}"#, "unknown: garbled"),
        (200, r#"{"id": 7, "status": "succeeded"}"#, "unknown: garbled"),
        (200, r#"{"id": "ch_1", "status": "pending"}"#, "unknown: not succeeded"),
        (200, r#"{"id": "ch_1"}"#, "unknown: not succeeded"),
        (200, r#"{"id": "ch_1", "status": "succeeded"}"#, "charged"),
        (200, too_long, "unknown: too long"),
        (202, r#"{"id": "ch_1", "status": "succeeded"}"#, "unknown: 202"),
        (307, "", "unknown: 307"),
        (402, r#"{"error": {"type": "card_error", "message": "No."}}"#, "declined"),
        (402, r#"{"error": {"type": "invalid_request_error"}}"#, "refused: 402"),
        (402, "<html>Pay for this network first</html>", "refused: 402"),
        (400, r#"{"error": {"type": "card_error"}}"#, "refused: 400"),
        (404, "", "refused: 404"),
        (503, "<html>Bad gateway</html>", "unknown: 503"),
    ] {
        let (outcome, requests) = charge_at(status, body).await;
        assert_eq!(kind(&outcome), expected, "{status} {body:.60}");
        assert_eq!(requests, 1, "neither repeated nor redirected");
    }
}

#[tokio::test]
async fn a_charge_is_found_by_its_key_on_whichever_page() {
    let rig = Rig::start().await;
    let (payer, other) = (rig.customer().await, rig.customer().await);
    let (first, declined, others) = (charge_of(&payer), charge_of(&payer), charge_of(&other));
    let ChargeOutcome::Charged { charge_id } = rig.client.charge(&first).await else {
        panic!("not charged");
    };
    rig.faults.script([Fault::Declined]);
    assert_eq!(kind(&rig.client.charge(&declined).await), "declined");
    assert_eq!(kind(&rig.client.charge(&others).await), "charged");
    for _ in 0..2 * PAGE {
        assert_eq!(kind(&rig.client.charge(&charge_of(&payer)).await), "charged");
    }

    let find = async |key| rig.client.find_charge(&payer, key, SystemTime::now()).await.expect("decidable");
    assert_eq!(find(first.idempotency_key).await, Some(charge_id));
    assert_eq!(find(declined.idempotency_key).await, None, "declined is not charged");
    assert_eq!(find(others.idempotency_key).await, None, "another customer's");
    assert_eq!(find(Uuid::new_v4()).await, None);
    let later = SystemTime::now() + 2 * CLOCK_MARGIN;
    let since_later = rig.client.find_charge(&payer, first.idempotency_key, later).await;
    assert_eq!(since_later.expect("decidable"), None, "older charges are not even listed");
}

#[tokio::test]
async fn a_lookup_that_cannot_end_is_not_taken_for_an_absence() {
    let key = Uuid::new_v4();
    let unreachable = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = unreachable.local_addr().expect("a bound socket");
    let unanswered =
        client(&format!("http://{address}"), SHORT_TIMEOUT).find_charge("cus_1", key, UNIX_EPOCH).await;
    assert!(matches!(unanswered, Err(LookupError::Transient(CallError::Unknown(_)))), "{unanswered:?}");

    let rig = Rig::start().await;
    let customer = rig.customer().await;
    let charge = async |_| drop(rig.client.charge(&charge_of(&customer)).await);
    stream::iter(0..=MAX_PAGES * PAGE).for_each_concurrent(16, charge).await;
    let endless = rig.client.find_charge(&customer, key, UNIX_EPOCH).await;
    assert!(matches!(endless, Err(LookupError::Undecidable(_))), "{endless:?}");
}

#[tokio::test]
async fn all_pages_of_a_lookup_share_one_deadline() {
    let rig = Rig::start().await;
    let customer = rig.customer().await;
    for _ in 0..8 {
        assert_eq!(kind(&rig.client.charge(&charge_of(&customer)).await), "charged");
    }
    // Each page comes well within the deadline, and all of them do not.
    let latency = SHORT_TIMEOUT.as_millis() / 4;
    let listing = format!(r#"{{"page": 1, "latency": "{latency}ms"}}"#);
    rig.send("PUT /_sandbox/lists", "", &listing).await;
    let (key, began) = (Uuid::new_v4(), Instant::now());
    let late = rig.hasty_client().find_charge(&customer, key, UNIX_EPOCH).await;
    assert!(matches!(late, Err(LookupError::Transient(CallError::Unknown(Unknown::TimedOut(_))))), "{late:?}");
    assert!(began.elapsed() >= SHORT_TIMEOUT);
    assert_eq!(rig.client.find_charge(&customer, key, UNIX_EPOCH).await.expect("in time"), None);
}

#[tokio::test]
async fn a_customer_is_created_once_per_key() {
    let rig = Rig::start().await;
    let key = Uuid::new_v4();
    let first = rig.client.create_customer("user@example.com", "tok_visa", key).await.expect("created");
    let again = rig.client.create_customer("user@example.com", "tok_visa", key).await.expect("replayed");
    assert_eq!(first, again);
    assert!(first.starts_with("cus_") && first.len() == 18, "{first}");

    let changed = rig.client.create_customer("other@example.com", "tok_visa", key).await;
    assert!(matches!(&changed, Err(CallError::Refused(reply)) if reply.kind == "idempotency_error"), "{changed:?}");
    let no_card = rig.client.create_customer("user@example.com", "tok_bogus", Uuid::new_v4()).await;
    assert!(matches!(&no_card, Err(CallError::Refused(reply)) if reply.code == "resource_missing"), "{no_card:?}");
}

/// Only Stripe's own 404 says that there is no such customer.
#[tokio::test]
async fn a_customer_is_absent_only_if_stripe_says_so() {
    let rig = Rig::start().await;
    let known = rig.client.create_customer("user@example.com", "tok_visa", Uuid::new_v4()).await.expect("created");
    assert!(rig.client.has_customer(&known).await.expect("asked"));
    assert!(!rig.client.has_customer("cus_nobody").await.expect("asked"));
    let (client, _, _server) = client_of(401, "{}").await;
    let refused = client.has_customer(&known).await;
    assert!(matches!(&refused, Err(CallError::Refused(_))), "{refused:?}");
}

#[tokio::test]
async fn calls_run_as_tasks() {
    let rig = Rig::start().await;
    let client = rig.client.clone();
    let customer = rig.customer().await;
    let task = tokio::spawn(async move {
        let charge = charge_of(&customer);
        let outcome = client.charge(&charge).await;
        (kind(&outcome), client.find_charge(&customer, charge.idempotency_key, UNIX_EPOCH).await)
    });
    let (outcome, found) = task.await.expect("no panic");
    assert_eq!(outcome, "charged");
    assert!(matches!(found, Ok(Some(_))), "{found:?}");
}

#[test]
fn settings_that_cannot_work_are_refused_without_showing_the_key() {
    for base in ["https://api.stripe.com", "http://127.0.0.1:5001/", "http://[::1]:5001/prefix"] {
        assert!(parse_base(base).is_ok(), "{base}");
    }
    for base in ["", "api.stripe.com", "/v1", "ftp://a", "http://", "http://u:p@a", "http://a?b", "http://a#b"] {
        assert!(parse_base(base).is_err(), "{base}");
    }

    let client = |key: &str| Client::new("http://127.0.0.1:1", &key.into(), LONG_TIMEOUT);
    assert!(!format!("{:?}", client("sk_secret").expect("valid settings")).contains("sk_secret"));
    for key in ["", "sk_secret\r\nX: y"] {
        let error = client(key).expect_err("not a header");
        assert!(matches!(error, ClientError::Key));
        assert!(!format!("{error:?} {error}").contains("sk_secret"));
    }
}
