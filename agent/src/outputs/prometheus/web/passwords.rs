//! Whether a name and a password belong together, by bcrypt hashes.
//!
//! A check is slow on purpose: some 70 ms at cost 10. So verdicts are kept, checks are made on a
//! thread of their own, one at a time, and after a wrong password the next check waits. Guessing takes
//! a fifth of a core at most, and no request that has a verdict waits for it.
//!
//! An unknown name costs as much as a known one, so that names cannot be found out by time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// Verdicts that are kept, of right passwords and of wrong ones each. Whoever guesses cannot drive out
/// the verdict of a scraper.
const KEPT: usize = 100;
/// Checks that may wait, and how many of them from one address.
const WAITING: usize = 16;
const WAITING_PER_ADDRESS: usize = 4;
/// How long the next check waits after one that failed, in times of what that took.
const PAUSE: u32 = 4;
/// The longest of these pauses, for hashes whose check takes seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The password is the user's.
    Right,
    /// It is not, or there is no such user.
    Wrong,
    /// Too many checks wait.
    Busy,
}

/// What identifies a verdict without keeping a password: a MAC of name, hash and password under a key
/// that only this process knows.
type VerdictKey = [u8; 32];

/// Checks passwords.
pub(super) struct Passwords {
    key: hmac::Key,
    verdicts: Mutex<Verdicts>,
    /// One check at a time. Whoever holds the permit has the thread.
    gate: Arc<Semaphore>,
    waiting: Arc<Mutex<Waiting>>,
}

impl Passwords {
    pub(super) fn new() -> Self {
        // The kernel's randomness is there long before an agent starts.
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        Self {
            key: key.expect("the kernel gives random bytes"),
            verdicts: Mutex::default(),
            gate: Arc::new(Semaphore::new(1)),
            waiting: Arc::default(),
        }
    }

    /// Whether `password` is that of `name`, as the hashes of `users` say.
    pub(super) async fn check(
        self: &Arc<Self>,
        users: &BTreeMap<String, String>,
        name: &[u8],
        password: &[u8],
        address: Option<IpAddr>,
    ) -> Verdict {
        let known = std::str::from_utf8(name)
            .ok()
            .and_then(|name| users.get(name));
        let hash = known.map_or_else(|| self.decoy(users, name), String::as_str);
        let key = self.key_of(known.is_some(), name, hash, password);
        if let Some(verdict) = self.verdicts().get(&key) {
            return verdict;
        }
        let Some(place) = Place::take(&self.waiting, address) else {
            return Verdict::Busy;
        };
        let Ok(turn) = Arc::clone(&self.gate).acquire_owned().await else {
            return Verdict::Busy;
        };
        // Another request may have asked the same meanwhile.
        if let Some(verdict) = self.verdicts().get(&key) {
            return verdict;
        }
        let work = Work {
            hash: hash.to_owned(),
            password: password.to_owned(),
            is_known: known.is_some(),
        };
        // A client that hangs up does not end the check, and so does not begin another one early.
        let passwords = Arc::clone(self);
        let done = tokio::spawn(async move {
            let verdict = work.done(turn).await;
            passwords.verdicts().put(key, verdict);
            drop(place);
            verdict
        });
        done.await.unwrap_or(Verdict::Wrong)
    }

    /// The hash that an unknown name is checked against: one of the users', always the same for a
    /// name. Users may have hashes of different costs, and each name has to have one of these.
    fn decoy<'a>(&self, users: &'a BTreeMap<String, String>, name: &[u8]) -> &'a str {
        let mac = hmac::sign(&self.key, name);
        let digits = mac.as_ref().iter().take(2);
        let place = digits.fold(0, |place, byte| place << 8 | usize::from(*byte));
        let place = place.checked_rem(users.len()).unwrap_or(0);
        // Whoever has no users asks nobody for a password. What is no hash fits no password.
        users.values().nth(place).map_or("", String::as_str)
    }

    /// A user can get the name or the hash of another one, so a verdict is only about both, and about
    /// whether there was such a user.
    fn key_of(&self, is_known: bool, name: &[u8], hash: &str, password: &[u8]) -> VerdictKey {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&[u8::from(is_known)]);
        for part in [name, hash.as_bytes(), password] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut key = VerdictKey::default();
        key.copy_from_slice(context.sign().as_ref());
        key
    }

    fn verdicts(&self) -> MutexGuard<'_, Verdicts> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A check that is to be made.
struct Work {
    hash: String,
    password: Vec<u8>,
    is_known: bool,
}

impl Work {
    async fn done(self, turn: OwnedSemaphorePermit) -> Verdict {
        let checked = spawn_blocking(move || {
            let began = Instant::now();
            let is_right = bcrypt::verify(&self.password, &self.hash).unwrap_or(false);
            (is_right && self.is_known, began.elapsed())
        });
        let (is_right, took) = checked.await.unwrap_or_default();
        if is_right {
            return Verdict::Right;
        }
        let pause = took.saturating_mul(PAUSE).min(LONGEST_PAUSE);
        tokio::spawn(async move {
            sleep(pause).await;
            drop(turn);
        });
        Verdict::Wrong
    }
}

/// Verdicts, the oldest of which go first.
#[derive(Default)]
struct Verdicts {
    right: VecDeque<VerdictKey>,
    wrong: VecDeque<VerdictKey>,
}

impl Verdicts {
    fn get(&self, key: &VerdictKey) -> Option<Verdict> {
        // A key is a MAC: how long comparing takes says nothing about a password.
        if self.right.contains(key) {
            Some(Verdict::Right)
        } else if self.wrong.contains(key) {
            Some(Verdict::Wrong)
        } else {
            None
        }
    }

    fn put(&mut self, key: VerdictKey, verdict: Verdict) {
        let kept = match verdict {
            Verdict::Right => &mut self.right,
            Verdict::Wrong => &mut self.wrong,
            Verdict::Busy => return,
        };
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(key);
    }
}

/// Checks that wait or are being made, by the address that asked.
type Waiting = HashMap<Option<IpAddr>, usize>;

/// A place among the checks that wait. It is given back on drop.
struct Place {
    waiting: Arc<Mutex<Waiting>>,
    address: Option<IpAddr>,
}

impl Place {
    fn take(waiting: &Arc<Mutex<Waiting>>, address: Option<IpAddr>) -> Option<Self> {
        let address = address.map(network);
        let mut held = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let own = held.get(&address).copied().unwrap_or_default();
        if held.values().sum::<usize>() >= WAITING || own >= WAITING_PER_ADDRESS {
            return None;
        }
        held.insert(address, own + 1);
        Some(Self {
            waiting: Arc::clone(waiting),
            address,
        })
    }
}

/// What counts as one client: an IPv4 address, or the network of 64 bits that a host with IPv6 has to
/// itself.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = held.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                held.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
#[path = "passwords_tests.rs"]
mod tests;
