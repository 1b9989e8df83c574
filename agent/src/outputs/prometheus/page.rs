//! `GET /`: a page for people, with who has which GPU now and who had it in the last hour.
//!
//! It is one document that asks for nothing else and has no script. Names on it come from tenants. The
//! template escapes them, and the Content-Security-Policy allows nothing but the page's own style, so
//! that a name that were not escaped would do nothing either.
//!
//! The page is made by one reader a commit and kept for the others, as expositions are.

mod history;
mod picture;
mod view;

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use askama::Template as _;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use self::history::History;
use self::view::Page;
use crate::core::model::{Clock, GpuUuid, Nanos};
use crate::drawing;
use crate::published::Published;

/// How often a column is added to the picture.
const LOOK_EACH: Duration = Duration::from_secs(60);
/// How long a page is kept if nothing is committed: what it says of the agent depends on the time.
const KEPT_FOR: Nanos = Nanos::from_secs(10);

/// The style, whose hash the Content-Security-Policy has.
const STYLE: &str = concat!(
    include_str!("../../../templates/base.css"),
    include_str!("../../../templates/page.css")
);

/// What a browser may do with the page: use the style that is in it, in nobody's frame.
static POLICY: LazyLock<String> =
    LazyLock::new(|| format!("{}; frame-ancestors 'none'", drawing::policy(STYLE)));

/// The headers of the page.
pub(super) fn headers() -> [(HeaderName, &'static str); 6] {
    [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, &**POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (VARY, "accept-encoding"),
    ]
}

/// The page, and the hour that its pictures show.
#[derive(Debug, Default)]
pub(super) struct PeoplePage {
    history: Mutex<History>,
}

/// The document. The text of its template is the other half of this.
#[derive(askama::Template)]
#[template(path = "page.html")]
struct Document<'a> {
    style: &'static str,
    page: &'a Page,
}

impl PeoplePage {
    /// The part of time that `now` is in. A page that was made in another one is made again, even if
    /// nothing was committed since.
    pub(super) const fn part_of_time(now: Clock) -> u64 {
        now.boot.0 / KEPT_FOR.0
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the page.
    pub(super) fn render(&self, published: &Published, now: Clock, out: &mut String) {
        let page = {
            let mut history = self.history();
            Page::new(published, &mut history, now)
        };
        let document = Document {
            style: STYLE,
            page: &page,
        };
        let written = document.render_into(out);
        written.expect("a String takes everything");
    }

    fn look(&self, published: &Published) {
        self.history().look(&published.books);
    }

    fn meet(&self, published: &Published) {
        self.history().meet(&published.books);
    }

    /// Looks at what is published now and then once a minute, for ever, and takes up GPUs that come in
    /// between. A look is a pass over all accounts, and is done on another thread.
    pub(super) async fn keep_history(
        self: Arc<Self>,
        mut published: watch::Receiver<Arc<Published>>,
    ) {
        let begun = published.wait_for(|published| published.books.sequence > 0);
        if begun.await.is_err() {
            // Nothing will ever be published: the agent ends.
            return;
        }
        let mut looks = interval_at(Instant::now(), LOOK_EACH);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut gpus: BTreeSet<GpuUuid> = BTreeSet::new();
        loop {
            let is_look = tokio::select! {
                biased;
                _ = looks.tick() => true,
                changed = published.changed() => match changed {
                    Ok(()) => false,
                    Err(_) => return,
                },
            };
            let (page, now) = (
                Arc::clone(&self),
                Arc::clone(&published.borrow_and_update()),
            );
            let books = &now.books.gpus;
            let has_new = books.iter().any(|book| !gpus.contains(&book.gpu.uuid));
            if has_new || gpus.len() != books.len() {
                gpus = books.iter().map(|book| book.gpu.uuid.clone()).collect();
            }
            if is_look || has_new {
                let noted = spawn_blocking(move || match is_look {
                    true => page.look(&now),
                    false => page.meet(&now),
                });
                // One that panicked has been logged, and the next look makes up for it.
                let _ = noted.await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
