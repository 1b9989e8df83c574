//! Whether the receiver of OTLP is there: its name resolves, it takes connections, and where they are
//! to be safe, both sides accept each other's certificates as far as that is known before a request.
//! Nothing is sent, because it would be booked.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::finding::{Finding, ok, warn};
use crate::errors::chain;
use crate::receiver::{Receiver, TlsFiles};

/// How long the name may take to resolve, and how long each address may take to answer.
const LIMIT: Duration = Duration::from_secs(3);
/// Addresses of a name that are tried.
const MOST_ADDRESSES: usize = 4;

/// Resolves the name of the receiver of `what` and connects to it.
pub(super) async fn look(what: &str, receiver: &Receiver) -> Finding {
    // Without its user: a receiver has none in its endpoint.
    let item = format!("{what} {}", receiver.endpoint);
    let host = receiver.url().ok().and_then(|url| {
        let port = url.port_or_known_default()?;
        Some((url.host_str()?.to_owned(), port))
    });
    let Some((host, port)) = host else {
        return warn(item, "the endpoint names no host", "change otlp.endpoint");
    };
    // An IPv6 address is in brackets in a URL and without them elsewhere.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<SocketAddr> = match timeout(LIMIT, lookup_host((name, port))).await {
        Ok(Ok(addresses)) => addresses.take(MOST_ADDRESSES).collect(),
        Ok(Err(error)) => {
            let found = format!("cannot resolve {name}: {}", chain(&error));
            return warn(
                item,
                found,
                "check the name in otlp.endpoint and the node's DNS",
            );
        }
        Err(_) => {
            let found = format!("cannot resolve {name}: no answer within {LIMIT:?}");
            return warn(item, found, "check the node's DNS");
        }
    };
    let mut refusals = Vec::new();
    for address in addresses {
        let refusal = match timeout(LIMIT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => return trusted(item, &address, receiver).await,
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("no answer within {LIMIT:?}"),
        };
        refusals.push(format!("cannot connect to {address}: {refusal}"));
    }
    if refusals.is_empty() {
        refusals.push(format!("{name} has no address"));
    }
    warn(
        item,
        refusals.join("; "),
        "check that the receiver runs and that otlp.endpoint has its address and port; gpuacct \
         retries forever",
    )
}

/// The finding about a receiver that takes connections.
async fn trusted(item: String, address: &SocketAddr, receiver: &Receiver) -> Finding {
    let files = receiver.clone();
    let headers = spawn_blocking(move || files.headers_now()).await;
    if let Ok(Err(error)) = headers {
        return warn(
            item,
            chain(&error),
            "write the value into the file, and let the agent read it",
        );
    }
    let Some(url) = receiver.url().ok().filter(|url| url.scheme() == "https") else {
        if receiver.tls != TlsFiles::default() {
            return warn(
                item,
                format!("{address} takes connections, and otlp.tls is not used"),
                "write https:// into the endpoint, or remove otlp.tls",
            );
        }
        return ok(item, format!("{address} takes connections"));
    };
    let connector = receiver.connector();
    let notes = connector.notes();
    let connected = match url.as_str().parse() {
        Ok(url) => connector.connect(url).await,
        Err(_) => return warn(item, "the endpoint is no URL", "change otlp.endpoint"),
    };
    match connected {
        Err(error) => warn(
            item,
            format!("{} ({})", chain(&error), error.class()),
            "see this class of otlp in docs/OPERATIONS.md; gpuacct retries forever",
        ),
        Ok(_) if notes.asked_in_vain() => warn(
            item,
            format!("{address} asks for a client certificate"),
            "if it insists on one, set otlp.tls.cert_file and otlp.tls.key_file",
        ),
        Ok(_) => ok(
            item,
            format!("{address} takes TLS connections, and its certificate is trusted"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::preflight::finding::Verdict;
    use crate::receiver::Protocol;

    async fn found(endpoint: String) -> Finding {
        look("otlp", &Receiver::new(endpoint, Protocol::Grpc)).await
    }

    #[tokio::test]
    async fn a_receiver_that_is_not_there_is_named_and_its_user_is_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint = format!("http://me:hunter22@{address}");
        let here = found(endpoint.clone()).await;
        assert_eq!(here.verdict, Verdict::Ok, "{here:?}");
        assert_eq!(here.found, format!("{address} takes connections"));
        drop(listener);
        let gone = found(endpoint).await;
        assert_eq!(gone.verdict, Verdict::Warn);
        let words = format!("cannot connect to {address}: Connection refused");
        assert!(gone.found.starts_with(&words), "{gone:?}");
        assert_eq!(gone.item, format!("otlp http://{address}"));
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_is_said() {
        // A label of a name has 63 letters at most, so no server is asked.
        let name = "a".repeat(64);
        let found = found(format!("http://{name}:4317")).await;
        assert_eq!(found.verdict, Verdict::Warn);
        let words = format!("cannot resolve {name}: ");
        assert!(found.found.starts_with(&words), "{found:?}");
    }
}
