//! The API as a client sees it.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// A client waits this long for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// An answer is a sentence.
const ANSWER_BYTES: usize = 16 * 1024;

/// Books rides over HTTP.
#[derive(Debug, Clone)]
pub(super) struct ApiClient {
    http: Client<HttpConnector, Full<Bytes>>,
    url: String,
}

/// A ride as a client asks for it.
#[derive(Debug, Clone)]
pub(super) struct Ride {
    pub(super) key: String,
    pub(super) email: &'static str,
    /// Latitude and longitude in degrees.
    pub(super) origin: (f64, f64),
    pub(super) target: (f64, f64),
    pub(super) raise_error: bool,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    body: Bytes,
}

impl Answer {
    /// Whether the same request will get this answer for ever.
    pub(super) fn is_final(&self) -> bool {
        matches!(self.status, 201 | 402)
    }
}

impl ApiClient {
    pub(super) fn new(api_base: &str) -> Self {
        let http = Client::builder(TokioExecutor::new()).build_http();
        Self { http, url: format!("{}/rides", api_base.trim_end_matches('/')) }
    }

    pub(super) async fn post(&self, ride: &Ride) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let ((origin_lat, origin_lon), (target_lat, target_lon)) = (ride.origin, ride.target);
        let mut form = format!(
            "origin_lat={origin_lat}&origin_lon={origin_lon}&target_lat={target_lat}&target_lon={target_lon}"
        );
        if ride.raise_error {
            form.push_str("&raise_error=true");
        }
        let request = Request::post(&self.url)
            .header(AUTHORIZATION, ride.email)
            .header("idempotency-key", &ride.key)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::from(form))?;
        let exchange = async {
            let response = self.http.request(request).await?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await?.to_bytes();
            Ok(Answer { status, body })
        };
        tokio::time::timeout(PATIENCE, exchange).await?
    }
}
