use super::*;

/// The cheapest that bcrypt has.
const COST: u32 = 4;

fn users(names: &[&str]) -> BTreeMap<String, String> {
    let hash = |name: &str| bcrypt::hash(format!("{name}'s"), COST).expect("it can be hashed");
    names
        .iter()
        .map(|name| ((*name).to_owned(), hash(name)))
        .collect()
}

async fn check(
    passwords: &Arc<Passwords>,
    users: &BTreeMap<String, String>,
    name: &str,
    password: &str,
) -> Verdict {
    passwords
        .check(users, name.as_bytes(), password.as_bytes(), None)
        .await
}

#[tokio::test]
async fn a_password_counts_for_its_user_alone_and_for_the_hash_of_now() {
    let passwords = Arc::new(Passwords::new());
    let mut users = users(&["ann", "ben"]);
    for (name, password, expected) in [
        ("ann", "ann's", Verdict::Right),
        ("ann", "ann's", Verdict::Right),
        ("ann", "ben's", Verdict::Wrong),
        ("ben", "ben's", Verdict::Right),
        ("ben", "", Verdict::Wrong),
        ("cid", "ann's", Verdict::Wrong),
        ("cid", "ben's", Verdict::Wrong),
        // Name and password are not one text.
        ("an", "nann's", Verdict::Wrong),
    ] {
        let found = check(&passwords, &users, name, password).await;
        assert_eq!(found, expected, "{name} {password}");
    }
    let changed = bcrypt::hash("new", COST).unwrap();
    users.insert("ann".to_owned(), changed);
    assert_eq!(
        check(&passwords, &users, "ann", "ann's").await,
        Verdict::Wrong
    );
    assert_eq!(
        check(&passwords, &users, "ann", "new").await,
        Verdict::Right
    );
    users.remove("ben");
    assert_eq!(
        check(&passwords, &users, "ben", "ben's").await,
        Verdict::Wrong
    );
}

#[tokio::test]
async fn guesses_do_not_drive_out_the_verdict_of_a_scraper() {
    let passwords = Arc::new(Passwords::new());
    let users = users(&["ann"]);
    assert_eq!(
        check(&passwords, &users, "ann", "ann's").await,
        Verdict::Right
    );
    let kept = |passwords: &Passwords| {
        let verdicts = passwords.verdicts();
        (verdicts.right.len(), verdicts.wrong.len())
    };
    for guess in 0..3 * KEPT {
        let key = passwords.key_of(true, b"ann", "hash", &guess.to_be_bytes());
        passwords.verdicts().put(key, Verdict::Wrong);
    }
    assert_eq!(kept(&passwords), (1, KEPT));
    // Nothing is checked for what has a verdict: there is no turn to be had.
    let turn = Arc::clone(&passwords.gate).acquire_owned().await.unwrap();
    assert_eq!(
        check(&passwords, &users, "ann", "ann's").await,
        Verdict::Right
    );
    drop(turn);
}

#[tokio::test]
async fn checks_beyond_the_bound_are_turned_away_and_an_address_has_its_share() {
    let passwords = Arc::new(Passwords::new());
    let users = Arc::new(users(&["ann"]));
    let turn = Arc::clone(&passwords.gate).acquire_owned().await.unwrap();
    let waiting = |last: u8, guess: usize| {
        let (passwords, users) = (Arc::clone(&passwords), Arc::clone(&users));
        let guess = format!("guess {guess}");
        let address = Some(IpAddr::from([10, 0, 0, last]));
        tokio::spawn(async move {
            passwords
                .check(&users, b"ann", guess.as_bytes(), address)
                .await
        })
    };
    let first: Vec<_> = (0..WAITING_PER_ADDRESS).map(|at| waiting(1, at)).collect();
    tokio::task::yield_now().await;
    assert_eq!(waiting(1, 99).await.unwrap(), Verdict::Busy);
    let mut others = Vec::new();
    for address in 2.. {
        if (others.len() + first.len()) >= WAITING {
            break;
        }
        others.extend((0..WAITING_PER_ADDRESS).map(|at| waiting(address, at)));
    }
    tokio::task::yield_now().await;
    assert_eq!(waiting(99, 0).await.unwrap(), Verdict::Busy);
    // Clients that hang up give their places back.
    for client in others.iter().chain(&first) {
        client.abort();
    }
    for client in others.into_iter().chain(first) {
        assert!(client.await.is_err());
    }
    assert!(lock_of(&passwords).is_empty());
    drop(turn);
    assert_eq!(
        check(&passwords, &users, "ann", "ann's").await,
        Verdict::Right
    );
}

fn lock_of(passwords: &Passwords) -> Waiting {
    passwords.waiting.lock().unwrap().clone()
}

/// The clock goes on by itself, as far as the next timer: a pause lasts no time here.
#[tokio::test(start_paused = true)]
async fn after_a_wrong_password_the_next_check_waits() {
    let passwords = Arc::new(Passwords::new());
    let users = users(&["ann"]);
    assert_eq!(
        check(&passwords, &users, "ann", "wrong").await,
        Verdict::Wrong
    );
    assert_eq!(passwords.gate.available_permits(), 0, "the pause goes on");
    assert_eq!(
        check(&passwords, &users, "ann", "ann's").await,
        Verdict::Right
    );
    assert_eq!(
        passwords.gate.available_permits(),
        1,
        "a right one costs no pause"
    );
}

#[tokio::test]
async fn a_client_that_hangs_up_does_not_begin_the_next_check_early() {
    let passwords = Arc::new(Passwords::new());
    // Slow enough to be hung up on.
    let hash = bcrypt::hash("slow", 10).unwrap();
    let users: Arc<BTreeMap<_, _>> = Arc::new([("ann".to_owned(), hash)].into());
    let client = {
        let (passwords, users) = (Arc::clone(&passwords), Arc::clone(&users));
        tokio::spawn(async move { passwords.check(&users, b"ann", b"slow", None).await })
    };
    while passwords.gate.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    client.abort();
    // Nobody waits for it any more, and yet it is made to its end, and its verdict kept.
    let turn = passwords.gate.acquire().await.unwrap();
    drop(turn);
    tokio::task::yield_now().await;
    assert_eq!(passwords.verdicts().right.len(), 1);
}

#[tokio::test]
async fn an_unknown_name_is_checked_against_a_hash_of_the_users() {
    let passwords = Passwords::new();
    let mut users = users(&["ann"]);
    users.insert("ben".to_owned(), bcrypt::hash("ben's", COST + 1).unwrap());
    let decoys: Vec<&str> = (0..64)
        .map(|at| passwords.decoy(&users, format!("name {at}").as_bytes()))
        .collect();
    for hash in users.values() {
        assert!(decoys.contains(&hash.as_str()), "each cost is some name's");
    }
    let again = passwords.decoy(&users, b"name 7");
    assert_eq!(decoys[7], again, "a name's cost stays the same");
}

#[tokio::test]
async fn a_user_who_gets_another_name_is_let_in_and_the_old_name_is_not() {
    let passwords = Arc::new(Passwords::new());
    let before = users(&["ann"]);
    let password = "ann's";
    assert_eq!(
        check(&passwords, &before, "bob", password).await,
        Verdict::Wrong
    );
    assert_eq!(
        check(&passwords, &before, "ann", password).await,
        Verdict::Right
    );
    let after: BTreeMap<String, String> = [("bob".to_owned(), before["ann"].clone())].into();
    assert_eq!(
        check(&passwords, &after, "bob", password).await,
        Verdict::Right
    );
    assert_eq!(
        check(&passwords, &after, "ann", password).await,
        Verdict::Wrong
    );
}
