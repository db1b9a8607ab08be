//! The API's behaviour, row by row, in the order of its checks.

use hyper::Method;

use crate::support::app::TestApp;
use crate::support::client::{DECLINED_USER, FORM, GOOD_USER, Post, RIDE, new_key};

#[tokio::test]
async fn a_ride_is_booked_once_and_its_answer_repeated() {
    let app = TestApp::start().await;
    let key = new_key();
    let first = app.post(Post::default().key(&key)).await;
    assert_eq!(first.status, 201, "{first:?}");
    assert_eq!(first.header("content-type"), Some("application/json"));
    assert!(first.json()["message"].is_string() && !first.is_replay());
    let second = app.post(Post::default().key(&key)).await;
    assert_eq!((second.status, &second.body), (201, &first.body));
    assert!(second.is_replay());
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn spellings_of_one_ride_are_one_request() {
    let app = TestApp::start().await;
    let key = new_key();
    let ride = |lat: &str| format!("origin_lat={lat}&origin_lon=0&target_lat=1&target_lon=1");
    assert_eq!(app.post(Post::form(ride("0.0")).key(&key)).await.status, 201);
    for lat in ["0", "-0.0", "0e0", "+0", " 0 "] {
        assert!(app.post(Post::form(ride(lat)).key(&key)).await.is_replay(), "{lat}");
    }
    let extra = format!("{}&colour=red", ride("0"));
    assert!(app.post(Post::form(extra).key(&key)).await.is_replay());
    assert!(app.post(Post::form(ride("0")).key(&key).raising()).await.is_replay());
    let other = app.post(Post::form(ride("0.1")).key(&key)).await;
    assert_eq!(other.status, 409);
    assert!(other.error().contains("Idempotency-Key"), "{other:?}");
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn a_declined_card_is_final() {
    let app = TestApp::start().await;
    let key = new_key();
    let first = app.post(Post::default().key(&key).user(DECLINED_USER)).await;
    assert_eq!(first.status, 402, "{first:?}");
    let second = app.post(Post::default().key(&key).user(DECLINED_USER)).await;
    assert_eq!((second.status, &second.body, second.is_replay()), (402, &first.body, true));
    assert_eq!(app.charges().await.len(), 0);
    assert_eq!(app.count("staged_jobs").await, 0);
}

#[tokio::test]
async fn a_failure_on_request_leaves_the_key_free_to_go_on() {
    let app = TestApp::start().await;
    let key = new_key();
    for _ in 0..2 {
        let failed = app.post(Post::default().key(&key).raising()).await;
        assert_eq!(failed.status, 500);
        let waiting = "idempotency_keys WHERE recovery_point = 'ride_created' AND lease_token IS NULL";
        assert_eq!(app.count(waiting).await, 1);
    }
    assert_eq!(app.post(Post::default().key(&key)).await.status, 201);
    app.assert_one_of_each().await;
    assert_eq!(app.get::<i32>("SELECT attempts FROM idempotency_keys").await, 3);
}

#[tokio::test]
async fn raise_error_is_true_or_false_and_only_in_a_demonstration() {
    let app = TestApp::start().await;
    for value in ["maybe", "TRUE", "1", ""] {
        let answer = app.post(Post::form(format!("{RIDE}&raise_error={value}"))).await;
        assert_eq!(answer.status, 422, "{value:?}");
        assert!(answer.error().contains("raise_error"));
    }
    assert_eq!(app.post(Post::form(format!("{RIDE}&raise_error=false"))).await.status, 201);
    let query = Post { path: "/rides?raise_error=true".into(), ..Post::default() };
    assert_eq!(app.post(query).await.status, 201);

    let serious = app.neighbour(|config| config.demo.enabled = false).await;
    assert_eq!(serious.post(Post::default().raising()).await.status, 201);
}

#[tokio::test]
async fn keys_have_20_to_100_characters() {
    let app = TestApp::start().await;
    for (key, status) in [
        ("k".repeat(19), 400),
        ("k".repeat(20), 201),
        ("k".repeat(100), 201),
        ("k".repeat(101), 400),
        (String::new(), 400),
    ] {
        let answer = app.post(Post::default().key(&key)).await;
        assert_eq!(answer.status, status, "{} characters", key.len());
        assert!(status == 201 || answer.error().contains("Idempotency-Key"), "{answer:?}");
    }
    assert_eq!(app.post(Post::default().without("idempotency-key")).await.status, 400);
    let twice = Post::default().with("idempotency-key", &new_key());
    assert_eq!(app.post(twice).await.status, 400);
    assert_eq!(app.count("idempotency_keys").await, 2);
}

#[tokio::test]
async fn clients_say_who_they_are() {
    let app = TestApp::start().await;
    for email in ["", "nobody@example.com", "USER@example.com"] {
        let answer = app.post(Post::default().user(email)).await;
        assert_eq!(answer.status, 401, "{email}");
        assert!(answer.error().contains("Authorization") && answer.header("www-authenticate").is_some());
    }
    assert_eq!(app.post(Post::default().without("authorization")).await.status, 401);
    let twice = Post::default().with("authorization", GOOD_USER);
    assert_eq!(app.post(twice).await.status, 400);
    assert_eq!(app.count("idempotency_keys").await, 0);
}

#[tokio::test]
async fn keys_of_different_users_do_not_meet() {
    let app = TestApp::start().await;
    let key = new_key();
    assert_eq!(app.post(Post::default().key(&key)).await.status, 201);
    let other = app.post(Post::default().key(&key).user(DECLINED_USER)).await;
    assert_eq!((other.status, other.is_replay()), (402, false));
}

#[tokio::test]
async fn checks_run_in_their_order() {
    let app = TestApp::start().await;
    let bad = || Post::form("origin_lat=x");
    assert_eq!(app.post(bad().without("authorization").without("idempotency-key")).await.status, 401);
    assert_eq!(app.post(bad().without("idempotency-key")).await.status, 400);
    assert_eq!(app.post(bad()).await.status, 422);
    // Held at Stripe: in progress for the same request, a mismatch for another.
    let key = new_key();
    app.script(&["hold"]).await;
    let (held, ()) = tokio::join!(app.post(Post::default().key(&key)), async {
        app.until_held().await;
        let mismatch = app.post(Post::form(RIDE.replace("37", "38")).key(&key)).await;
        assert_eq!((mismatch.status, mismatch.header("retry-after")), (409, None), "{mismatch:?}");
        let in_progress = app.post(Post::default().key(&key)).await;
        assert_eq!((in_progress.status, in_progress.header("retry-after")), (409, Some("1")), "{in_progress:?}");
        app.release_held().await;
    });
    assert_eq!(held.status, 201);
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn parameters_are_four_coordinates_in_range() {
    let app = TestApp::start().await;
    let fields = ["origin_lat", "origin_lon", "target_lat", "target_lon"];
    let with = |field: &str, value: Option<&str>| {
        let pairs = fields.iter().filter_map(|name| match value {
            Some(value) if *name == field => Some(format!("{name}={value}")),
            None if *name == field => None,
            _ => Some(format!("{name}=1")),
        });
        pairs.collect::<Vec<_>>().join("&")
    };
    for field in fields {
        let bound = if field.ends_with("lat") { 90 } else { 180 };
        let (over, under) = (format!("{bound}.0001"), format!("-{bound}.0001"));
        for bad in [None, Some(""), Some("abc"), Some(over.as_str()), Some(under.as_str())] {
            let answer = app.post(Post::form(with(field, bad))).await;
            assert_eq!(answer.status, 422, "{field} = {bad:?}");
            assert!(answer.error().contains(field), "{answer:?}");
        }
        for good in [format!("{bound}"), format!("-{bound}")] {
            assert_eq!(app.post(Post::form(with(field, Some(&good)))).await.status, 201, "{field} = {good}");
        }
    }
    let long = "1".to_owned() + "." + &"0".repeat(1000);
    for good in ["1e1", "+1.0+", ".5", "%2B1", "017", "1e-400", &long] {
        assert_eq!(app.post(Post::form(with("origin_lat", Some(good)))).await.status, 201, "{good}");
    }
    for bad in ["NaN", "Infinity", "5.", "1e", "0b11", "0x1A", "1_0", "%FF", "1%00"] {
        assert_eq!(app.post(Post::form(with("origin_lat", Some(bad)))).await.status, 422, "{bad}");
    }
    let twice = app.post(Post::form(format!("{RIDE}&target_lon=1"))).await;
    assert_eq!(twice.status, 422);
    assert!(twice.error().contains("target_lon"));
}

#[tokio::test]
async fn bodies_are_forms_json_or_multipart() {
    let app = TestApp::start().await;
    let json = r#"{"origin_lat": 1, "origin_lon": "2.5", "target_lat": -3e0, "target_lon": 4, "more": [1]}"#;
    let multipart = ["origin_lat", "origin_lon", "target_lat", "target_lon"]
        .map(|name| format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n1\r\n"))
        .concat()
        + "--b--\r\n";
    let form_with_charset = format!("{FORM}; charset=utf-8");
    for (kind, body, status) in [
        (FORM, RIDE, 201),
        (form_with_charset.as_str(), RIDE, 201),
        ("application/json", json, 201),
        ("application/json; charset=utf-8", json, 201),
        ("multipart/form-data; boundary=b", multipart.as_str(), 201),
        ("text/plain", RIDE, 422),
        ("application/json", RIDE, 400),
        ("application/json", "[]", 400),
        ("application/json", r#"{"origin_lat": 1} x"#, 400),
        ("application/json", r#"{"origin_lat": true}"#, 422),
        ("application/json", r#"{"origin_lat": 1, "origin_lat": 1}"#, 422),
        ("multipart/form-data", multipart.as_str(), 400),
        ("multipart/form-data; boundary=b", "--b\r\nnonsense", 400),
        (FORM, "", 422),
    ] {
        let answer = app.post(Post::new(kind, body.to_owned())).await;
        assert_eq!(answer.status, status, "{kind}: {body}: {answer:?}");
    }
    assert_eq!(app.post(Post::default().without("content-type")).await.status, 201);
    let query =
        Post { path: "/rides?origin_lat=1&origin_lon=1&target_lat=1&target_lon=1".into(), ..Post::form("") };
    assert_eq!(app.post(query).await.status, 422);
    assert_eq!(app.post(Post::form(format!("{RIDE}&x={}", "x".repeat(20_000)))).await.status, 413);
}

#[tokio::test]
async fn other_paths_and_methods() {
    let app = TestApp::start().await;
    for (method, path, status, allow) in [
        (Method::GET, "/", 404, None),
        (Method::POST, "/ride", 404, None),
        (Method::GET, "/rides", 405, Some("POST")),
        (Method::DELETE, "/rides", 405, Some("POST")),
        (Method::POST, "/healthz", 405, Some("GET, HEAD")),
        (Method::GET, "/healthz", 200, None),
        (Method::GET, "/readyz", 200, None),
        (Method::POST, "/metrics", 405, Some("GET, HEAD")),
    ] {
        let answer = app.api.call(method.clone(), path, "").await;
        assert_eq!((answer.status, answer.header("allow")), (status, allow), "{method} {path}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_is_served_all_the_same() {
    let app = TestApp::start().await;
    app.script(&["hold"]).await;
    let api = app.api.clone();
    let client = tokio::spawn(async move { api.try_post(Post::default()).await });
    app.until_held().await;
    client.abort();
    assert!(client.await.is_err());
    app.release_held().await;
    app.until_count("idempotency_keys WHERE response_code = 201", 1).await;
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn one_key_sent_many_times_at_once_is_one_ride() {
    let app = TestApp::start().await;
    let key = new_key();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (api, post) = (app.api.clone(), Post::default().key(&key));
        clients.spawn(async move {
            loop {
                let answer = api.post(post.clone()).await;
                match answer.status {
                    409 => tokio::task::yield_now().await,
                    _ => return answer,
                }
            }
        });
    }
    let answers = clients.join_all().await;
    assert!(answers.iter().all(|answer| answer.status == 201 && answer.body == answers[0].body));
    assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), 1);
    app.assert_one_of_each().await;
}
