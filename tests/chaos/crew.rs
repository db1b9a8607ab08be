//! An API and a completer in this process, behind proxies whose script may hold or break their messages, or plant a
//! bug.

use std::sync::Arc;
use std::time::Duration;

use atomic_phases::clock::Clock;
use atomic_phases::database::tls;
use atomic_phases::idempotency::Engine;
use atomic_phases::roles::completer::Completer;
use rocket_rides_atomic::config;
use rocket_rides_atomic::operations;
use rocket_rides_atomic::stripe;
use secrecy::SecretString;
use tokio::sync::Notify;

use super::lane::Route;
use super::proxy::Bug;
use crate::support::app::{TestApp, hold_the_heart, pool_of};

/// How long Stripe remembers a key: far longer than a test takes.
const KEY_RETENTION: Duration = Duration::from_secs(3600);

/// An API and a completer whose messages a script can hold. The completer polls only when the test calls it, so that a
/// round does what its seed says.
pub struct Workers {
    pub route: Route,
    pub api: TestApp,
    pub completer: Completer,
}

impl Workers {
    pub async fn new(app: &TestApp, bug: Option<Bug>) -> Arc<Self> {
        let route = Route::new(app).await;
        if let Some(bug) = bug {
            route.script.plant(bug);
        }
        let (url, api_base) = (route.database_url(), route.stripe_url());
        let (postgres, _) = tls::parse(&url).unwrap();
        let database = pool_of(&postgres, 1).await;
        let stripe = stripe::Client::new(&api_base, &"sk_test_zombie".into(), Duration::from_secs(5)).unwrap();
        let lock_timeout = app.config.idempotency.lock_timeout;
        let engine = Engine {
            database: database.clone(),
            lock_timeout,
            grace: app.config.completer.grace,
            staged: Arc::new(Notify::new()),
            clock: Clock::default(),
        };
        let operations = operations::register(&engine, stripe, KEY_RETENTION).operations;
        let (settings, handed_back) = (config::Completer::default(), Arc::default());
        let completer = Completer { database, operations, settings, lock_timeout, handed_back };
        let api = app
            .neighbour(|config| {
                config.database.url = Some(SecretString::from(url));
                config.stripe.api_base = Some(api_base);
                hold_the_heart(config);
            })
            .await;
        Arc::new(Self { route, api, completer })
    }
}
