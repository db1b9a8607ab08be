use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::stripe::testing::{Rig, Scratch, charge_of, send};
use crate::stripe::{ChargeOutcome, ChargeRequest, RefundOutcome, RefundRequest};

fn status(response: &str) -> &str {
    response.split(' ').nth(1).unwrap_or_default()
}

fn body(response: &str) -> &str {
    response.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default()
}

fn replayed(response: &str) -> bool {
    response.contains("\r\nidempotent-replayed: true\r\n")
}

async fn charge_id(rig: &Rig, charge: &ChargeRequest) -> String {
    match rig.client.charge(charge).await {
        ChargeOutcome::Charged { charge_id } => charge_id,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_first_answer_is_replayed_byte_for_byte_and_marked() {
    let rig = Rig::start().await;
    let form = format!("amount=100&currency=usd&customer={}&metadata[a]=b", rig.customer().await);
    for (key, expected) in [("good", "200"), ("bad", "402")] {
        if key == "bad" {
            rig.faults.script([Fault::Declined]);
        }
        let header = format!("Idempotency-Key: {key}\r\n");
        let first = rig.send("POST /v1/charges", &header, &form).await;
        let again = rig.send("POST /v1/charges", &header, &form).await;
        assert_eq!((status(&first), status(&again)), (expected, expected));
        assert_eq!(body(&first), body(&again));
        assert_eq!((replayed(&first), replayed(&again)), (false, true));

        let other = rig.send("POST /v1/charges", &header, &form.replace("100", "101")).await;
        assert_eq!(status(&other), "400");
        assert!(body(&other).contains(r#""type":"idempotency_error""#), "{other}");
        let elsewhere = rig.send("POST /v1/customers", &header, "source=tok_visa").await;
        assert!(body(&elsewhere).contains(r#""type":"idempotency_error""#), "{elsewhere}");
    }
    assert_eq!(rig.ledger.charges().len(), 2);
}

#[tokio::test]
async fn nothing_is_stored_if_validation_fails() {
    let rig = Rig::start().await;
    let customer = rig.customer().await;
    let key = "Idempotency-Key: a\r\n";
    for form in [
        String::new(),
        format!("amount=0&currency=usd&customer={customer}"),
        format!("amount=-1&currency=usd&customer={customer}"),
        format!("amount=100000000&currency=usd&customer={customer}"),
        format!("amount=100&currency=dollars&customer={customer}"),
        format!("amount=100&currency=usd&customer={customer}&tip=1"),
        "amount=100&currency=usd".to_owned(),
        "amount=100&currency=usd&customer=cus_nobody".to_owned(),
    ] {
        assert_eq!(status(&rig.send("POST /v1/charges", key, &form).await), "400", "{form}");
    }
    let form = format!("amount=100&currency=USD&customer={customer}");
    let valid = rig.send("POST /v1/charges", key, &form).await;
    assert_eq!((status(&valid), replayed(&valid)), ("200", false));
    let too_long = format!("Idempotency-Key: {}\r\n", "k".repeat(256));
    assert_eq!(status(&rig.send("POST /v1/charges", &too_long, &form).await), "400");
    let longest = format!("Idempotency-Key: {}\r\n", "k".repeat(255));
    assert_eq!(status(&rig.send("POST /v1/charges", &longest, &form).await), "200");
}

#[tokio::test]
async fn a_key_in_use_is_a_conflict_until_the_first_request_ends() {
    let rig = Rig::start().await;
    let charge = charge_of(&rig.customer().await);
    rig.faults.script([Fault::Hold]);
    let (first, ()) = tokio::join!(rig.client.charge(&charge), async {
        rig.faults.wait_until_held(1).await;
        match rig.hasty_client().charge(&charge).await {
            ChargeOutcome::Refused(reply) => assert_eq!(reply.code, "idempotency_key_in_use"),
            other => panic!("{other:?}"),
        }
        rig.faults.release();
    });
    let ChargeOutcome::Charged { charge_id: first } = first else { panic!("{first:?}") };
    assert_eq!(charge_id(&rig, &charge).await, first);
    assert_eq!(rig.ledger.charges().len(), 1);
}

/// Stripe stores a 500 like any other answer, once execution has begun, and whether money moved or not.
#[tokio::test]
async fn a_failure_that_is_stored_is_repeated_until_it_is_forgotten() {
    let scratch = Scratch::new();
    for (fault, charges) in [(Fault::StoredServerError, 0), (Fault::ChargedThenStoredServerError, 1)] {
        let rig = Rig::start_on(&scratch.ledger(), Duration::from_secs(3600)).await;
        let charge = charge_of(&rig.customer().await);
        let before = rig.ledger.charges().len();
        rig.faults.script([fault]);
        assert!(matches!(rig.client.charge(&charge).await, ChargeOutcome::Unknown(_)));
        rig.stop().await;

        let rig = Rig::start_on(&scratch.ledger(), Duration::from_secs(3600)).await;
        assert!(matches!(rig.client.charge(&charge).await, ChargeOutcome::Unknown(_)), "{fault:?} is stored");
        assert_eq!(rig.ledger.charges().len(), before + charges, "{fault:?}");
        let found = rig.client.find_charge(&charge.customer, charge.idempotency_key, UNIX_EPOCH).await;
        assert_eq!(found.expect("a list").is_some(), charges == 1, "{fault:?}");
        rig.ledger.forget_keys().expect("written");
        charge_id(&rig, &charge).await;
        assert_eq!(rig.ledger.charges().len(), before + charges + 1, "{fault:?} is forgotten");
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_forgotten_key_is_a_new_request() {
    let scratch = Scratch::new();
    let rig = Rig::start_on(&scratch.ledger(), Duration::from_secs(3600)).await;
    let charge = charge_of(&rig.customer().await);
    let first = charge_id(&rig, &charge).await;
    assert_eq!(status(&rig.send("PUT /_sandbox/forget", "", "").await), "200");
    rig.stop().await;

    let rig = Rig::start_on(&scratch.ledger(), Duration::from_secs(3600)).await;
    let second = charge_id(&rig, &charge).await;
    assert_ne!(first, second, "forgotten for good");
    assert_eq!(charge_id(&rig, &charge).await, second);
    rig.stop().await;

    let rig = Rig::start_on(&scratch.ledger(), Duration::ZERO).await;
    assert_ne!(charge_id(&rig, &charge).await, second, "too old");
    assert_eq!(rig.ledger.charges().len(), 3);
}

#[tokio::test]
async fn time_that_passes_ages_charges_and_keys_alike() {
    let scratch = Scratch::new();
    let rig = Rig::start_on(&scratch.ledger(), Duration::from_secs(24 * 3600)).await;
    let customer = rig.customer().await;
    let charge = charge_of(&customer);
    let first = charge_id(&rig, &charge).await;
    let made_ms = rig.ledger.charges()[0].created_ms;
    assert_eq!(status(&rig.send("POST /_sandbox/age", "", "\"23h\"").await), "200");
    assert_eq!(charge_id(&rig, &charge).await, first, "its key is 23 h old");
    assert_eq!(status(&rig.send("POST /_sandbox/age", "", "\"1h\"").await), "200");
    let second = charge_id(&rig, &charge).await;
    assert_ne!(second, first, "its key is 24 h old");
    rig.stop().await;

    let rig = Rig::start_on(&scratch.ledger(), Duration::from_secs(24 * 3600)).await;
    let day_ms = 24 * 3600 * 1000;
    let charges = rig.ledger.charges();
    assert_eq!(charges[0].created_ms, made_ms - day_ms);
    assert!(charges[1].created_ms >= made_ms, "made after that time had passed");
    assert_eq!(charge_id(&rig, &charge).await, second);
}

#[tokio::test]
async fn a_pending_charge_stays_so_in_its_answer_and_not_in_the_books() {
    let scratch = Scratch::new();
    let rig = Rig::start_on(&scratch.ledger(), Duration::from_secs(3600)).await;
    let form = format!("amount=100&currency=usd&customer={}", rig.customer().await);
    rig.faults.script([Fault::Pending]);
    let key = "Idempotency-Key: a\r\n";
    let first = rig.send("POST /v1/charges", key, &form).await;
    assert!(body(&first).contains(r#""status":"pending""#), "{first}");
    assert_eq!(status(&rig.send("PUT /_sandbox/settle", "", "\"succeeded\"").await), "200");
    rig.stop().await;

    let rig = Rig::start_on(&scratch.ledger(), Duration::from_secs(3600)).await;
    assert_eq!(body(&rig.send("POST /v1/charges", key, &form).await), body(&first));
    let charges = rig.ledger.charges();
    assert_eq!((charges.len(), charges[0].status), (1, ChargeStatus::Succeeded));
}

#[tokio::test]
async fn a_restart_forgets_nothing() {
    let scratch = Scratch::new();
    let rig = Rig::start_on(&scratch.ledger(), Duration::from_secs(3600)).await;
    let customer = rig.customer().await;
    let (good, bad) = (charge_of(&customer), charge_of(&customer));
    let good_id = charge_id(&rig, &good).await;
    rig.faults.script([Fault::Declined]);
    assert!(matches!(rig.client.charge(&bad).await, ChargeOutcome::Declined { .. }));
    let before = rig.ledger.charges();
    rig.stop().await;

    let rig = Rig::start_on(&scratch.ledger(), Duration::from_secs(3600)).await;
    assert_eq!(rig.ledger.charges(), before);
    assert_eq!(charge_id(&rig, &good).await, good_id);
    assert!(matches!(rig.client.charge(&bad).await, ChargeOutcome::Declined { .. }));
    assert_eq!(status(&rig.send(&format!("GET /v1/customers/{customer}"), "", "").await), "200");
    assert_ne!(charge_id(&rig, &charge_of(&customer)).await, good_id);
    assert_eq!(rig.ledger.charges().len(), 3);
}

#[tokio::test]
async fn charges_are_listed_newest_first_and_by_page() {
    let rig = Rig::start().await;
    let (payer, other) = (rig.customer().await, rig.customer().await);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(charge_id(&rig, &charge_of(&payer)).await);
        charge_id(&rig, &charge_of(&other)).await;
    }
    let list = async |query: String| {
        let response = rig.send(&format!("GET /v1/charges?{query}"), "", "").await;
        let page: serde_json::Value = serde_json::from_str(body(&response)).expect("JSON");
        let data = page["data"].as_array().cloned().unwrap_or_default();
        let ids: Vec<_> = data.iter().map(|charge| charge["id"].as_str().unwrap_or_default().to_owned()).collect();
        (ids, page["has_more"].as_bool())
    };
    let (newest, middle, oldest) = (ids[2].clone(), ids[1].clone(), ids[0].clone());
    let first = list(format!("customer={payer}&limit=2")).await;
    assert_eq!(first, (vec![newest.clone(), middle.clone()], Some(true)));
    let second = list(format!("customer={payer}&limit=2&starting_after={middle}")).await;
    assert_eq!(second, (vec![oldest], Some(false)));
    assert_eq!(list("limit=100".to_owned()).await.0.len(), 6);
    assert_eq!(list("created[gte]=99999999999".to_owned()).await, (vec![], Some(false)));
    assert_eq!(list("customer=cus_nobody".to_owned()).await, (vec![], Some(false)));
    for query in ["limit=0", "limit=101", "starting_after=ch_none", "created[gte]=x", "page=2"] {
        assert_eq!(status(&rig.send(&format!("GET /v1/charges?{query}"), "", "").await), "400", "{query}");
    }
    let one = rig.send(&format!("GET /v1/charges/{newest}"), "", "").await;
    assert!(body(&one).contains(&newest), "{one}");
}

#[tokio::test]
async fn a_charge_is_refunded_as_a_whole_and_once() {
    let rig = Rig::start().await;
    let payer = rig.customer().await;
    let (charge, other) = (charge_id(&rig, &charge_of(&payer)).await, charge_id(&rig, &charge_of(&payer)).await);
    let refund = async |key: &str, charge: &str| {
        let form = format!("charge={charge}&metadata[a]=b");
        rig.send("POST /v1/refunds", &format!("Idempotency-Key: {key}\r\n"), &form).await
    };
    let (first, again) = (refund("one", &charge).await, refund("one", &charge).await);
    assert_eq!((status(&first), status(&again)), ("200", "200"));
    assert_eq!((body(&first), replayed(&first), replayed(&again)), (body(&again), false, true));
    assert!(body(&refund("one", &other).await).contains(r#""type":"idempotency_error""#));
    let second = refund("two", &charge).await;
    assert_eq!(status(&second), "400");
    assert!(body(&second).contains(r#""code":"charge_already_refunded""#), "{second}");
    assert_eq!(status(&refund("three", "ch_none").await), "400");
    rig.faults.script([Fault::Declined]);
    let declined = rig.client.charge(&charge_of(&payer)).await;
    assert!(matches!(declined, ChargeOutcome::Declined { .. }), "{declined:?}");
    let unpaid = rig.ledger.charges().last().expect("one").id.clone();
    assert_eq!(status(&refund("four", &unpaid).await), "400");

    let refunds = rig.ledger.refunds();
    assert_eq!((refunds.len(), &refunds[0].terms.charge), (1, &charge));
    let seen = rig.send(&format!("GET /v1/charges/{charge}"), "", "").await;
    assert!(body(&seen).contains(r#""refunded":true"#), "{seen}");
    let list = rig.send(&format!("GET /v1/refunds?charge={charge}"), "", "").await;
    assert!(body(&list).contains(&refunds[0].id), "{list}");
    let none = rig.send(&format!("GET /v1/refunds?charge={other}"), "", "").await;
    assert!(body(&none).contains(r#""data":[]"#), "{none}");
    let second = refunds[0].created_ms / 1000;
    for (since, there) in [(second, true), (second + 1, false)] {
        for of in [String::new(), format!("&charge={charge}")] {
            let list = rig.send(&format!("GET /v1/refunds?created[gte]={since}{of}"), "", "").await;
            assert_eq!(body(&list).contains(&refunds[0].id), there, "{list}");
        }
    }
    let before =
        rig.send(&format!("GET /v1/refunds?charge={charge}&starting_after={}", refunds[0].id), "", "").await;
    assert!(body(&before).contains(r#""data":[]"#), "{before}");
    for (list, of) in [("refunds", "customer"), ("charges", "charge")] {
        let unknown = rig.send(&format!("GET /v1/{list}?{of}=x"), "", "").await;
        assert!(body(&unknown).contains("parameter_unknown"), "{unknown}");
    }
}

#[tokio::test]
async fn what_a_client_knows_of_a_refund_is_what_its_answer_proves() {
    let rig = Rig::start().await;
    let payer = rig.customer().await;
    for (fault, known) in [
        (Fault::None, "refunded"),
        (Fault::Reset, "unknown"),
        (Fault::ServerError, "unknown"),
        (Fault::RateLimited, "refused"),
        (Fault::Pending, "unknown"),
        (Fault::StoredServerError, "unknown"),
        (Fault::ChargedThenStoredServerError, "unknown"),
        (Fault::ChargedThenServerError, "unknown"),
        (Fault::ReplyLost, "unknown"),
        (Fault::Truncated, "unknown"),
        (Fault::NoId, "unknown"),
    ] {
        let charge_id = charge_id(&rig, &charge_of(&payer)).await;
        let request = RefundRequest { charge_id, ride_id: 7, idempotency_key: uuid::Uuid::new_v4() };
        rig.faults.script([fault]);
        let outcome = match rig.client.refund(&request).await {
            RefundOutcome::Refunded(_) => "refunded",
            RefundOutcome::AlreadyRefunded(_) => "already refunded",
            RefundOutcome::NotSent(_) => "not sent",
            RefundOutcome::Unknown(_) => "unknown",
            RefundOutcome::Refused(_) => "refused",
        };
        assert_eq!(outcome, known, "{fault:?}");
        let made = rig
            .ledger
            .refunds()
            .iter()
            .any(|refund| refund.terms.charge == request.charge_id && refund.status == ChargeStatus::Succeeded);
        match rig.client.find_refund(&request.charge_id).await {
            Ok(found) => assert_eq!(found.is_some(), made, "{fault:?}"),
            Err(error) => assert!(fault == Fault::Pending, "{fault:?}: {error}"),
        }
        rig.ledger.forget_keys().expect("written");
        let again = RefundRequest { idempotency_key: uuid::Uuid::new_v4(), ..request };
        let outcome = rig.client.refund(&again).await;
        let already = made || fault == Fault::Pending;
        assert_eq!(matches!(outcome, RefundOutcome::AlreadyRefunded(_)), already, "{fault:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn errors_have_stripes_shape() {
    let rig = Rig::start().await;
    for (line, expected) in [
        ("GET /v1/charges/ch_none", "404"),
        ("GET /v1/customers/cus_none", "404"),
        ("GET /v1/payouts", "404"),
        ("DELETE /v1/refunds", "405"),
        ("GET /", "404"),
        ("DELETE /v1/charges", "405"),
        ("GET /v1/customers", "405"),
        ("DELETE /v1/customers/cus_none", "405"),
        ("POST /_sandbox/faults", "405"),
        ("GET /_sandbox/nothing", "404"),
    ] {
        let response = rig.send(line, "", "").await;
        assert_eq!(status(&response), expected, "{line}");
        assert_eq!(response.contains("\r\nallow: "), expected == "405", "{line}");
        assert!(body(&response).contains(r#""type":"invalid_request_error""#), "{line}: {response}");
    }
    for headers in ["", "Authorization: Bearer \r\n", "Authorization: Digest x\r\n"] {
        assert_eq!(status(&send(rig.address, "GET /v1/charges", headers, "").await), "401", "{headers}");
    }
}

#[tokio::test]
async fn faults_are_steered_over_http() {
    let rig = Rig::start().await;
    let charge = charge_of(&rig.customer().await);
    let put = rig.send("PUT /_sandbox/faults", "", r#"{"seed": 1, "rate_limited": 1, "latency": "1ms"}"#).await;
    assert_eq!(status(&put), "200");
    let faults: Faults =
        serde_json::from_str(body(&rig.send("GET /_sandbox/faults", "", "").await)).expect("faults");
    assert_eq!(faults.rate_limited, 1.0);
    assert_eq!(faults.latency, Duration::from_millis(1));
    assert!(matches!(rig.client.charge(&charge).await, ChargeOutcome::Refused(_)));

    let next = rig.send("POST /_sandbox/faults/next", "", r#"["reply_lost", "none"]"#).await;
    assert_eq!(status(&next), "200");
    assert!(matches!(rig.client.charge(&charge).await, ChargeOutcome::Unknown(_)));
    charge_id(&rig, &charge).await;
    assert!(matches!(rig.client.charge(&charge).await, ChargeOutcome::Refused(_)), "the script has ended");

    for (line, bad) in [
        ("PUT /_sandbox/faults", r#"{"reset": 2}"#),
        ("PUT /_sandbox/faults", r#"{"unheard_of": 1}"#),
        ("POST /_sandbox/faults/next", r#"["unheard_of"]"#),
    ] {
        assert_eq!(status(&rig.send(line, "", bad).await), "400", "{bad}");
    }
    assert_eq!(rig.faults.faults().rate_limited, 1.0, "still in force");
}

#[tokio::test]
async fn stopping_answers_the_charges_in_flight() {
    let rig = Rig::start().await;
    let charge = charge_of(&rig.customer().await);
    rig.faults.script([Fault::Hold]);
    let (outcome, ()) = tokio::join!(rig.client.charge(&charge), async {
        rig.faults.wait_until_held(1).await;
        rig.begin_to_stop();
    });
    assert!(matches!(outcome, ChargeOutcome::Charged { .. }), "{outcome:?}");
    rig.stop().await;
}
