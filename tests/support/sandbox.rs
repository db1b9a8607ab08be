//! Changes that a test makes to the sandbox's ledger and lists, over the sandbox's own HTTP.

use hyper::Method;
use serde_json::json;

use super::app::TestApp;

impl TestApp {
    /// Sets what happens to the next lists of charges, in order.
    pub async fn script_lists(&self, faults: &[&str]) {
        self.control(Method::POST, "lists/next", &json!(faults).to_string()).await;
    }

    /// Limits a page to this many charges.
    pub async fn list_by(&self, page: usize) {
        self.control(Method::PUT, "lists", &json!({ "page": page }).to_string()).await;
    }

    /// Makes all records of Stripe older by this time, such as `26h`.
    pub async fn age_stripe(&self, by: &str) {
        self.control(Method::POST, "age", &json!(by).to_string()).await;
    }

    /// Gives the pending charges this status.
    pub async fn settle_charges(&self, status: &str) {
        self.control(Method::PUT, "settle", &json!(status).to_string()).await;
    }

    async fn control(&self, method: Method, path: &str, body: &str) {
        let answer = self.sandbox.call(method, &format!("/_sandbox/{path}"), body).await;
        assert_eq!(answer.status, 200, "{path} {body}: {answer:?}");
    }
}
