//! `/metrics` and `/healthz` over HTTP, for Prometheus and load balancers; nothing else.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};

use crate::metrics::Metrics;

/// Connections at a time: a scraper needs one.
const CONNECTIONS_MAX: usize = 16;
/// A client that says nothing for so long is gone.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// No connection lives longer, so that a few that do nothing cannot keep all others out.
const CONNECTION_MAX: Duration = Duration::from_secs(60);

/// Whether the daemon does what it should; if not, why.
pub type Health = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Why it is not served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Others could read the figures.
    #[error("{0} is reached by other machines: metrics.token_file is needed")]
    Open(SocketAddr),
    /// The address cannot be had.
    #[error("cannot listen on {address} for metrics: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// The endpoint. Dropped, it is closed.
pub struct Server {
    address: SocketAddr,
    stop: Arc<Notify>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

struct Site {
    metrics: Metrics,
    health: Health,
    /// Compared in the time that takes the same for every token.
    token: Option<blake3::Hash>,
}

impl Server {
    /// Serves on this address; whoever asks needs the token, if there is one.
    ///
    /// # Errors
    ///
    /// An address beyond loopback without a token; what listening on it answers.
    pub fn start(
        address: SocketAddr,
        token: Option<&str>,
        metrics: Metrics,
        health: Health,
    ) -> Result<Self, HttpError> {
        if !address.ip().is_loopback() && token.is_none() {
            return Err(HttpError::Open(address));
        }
        let fail = |source| HttpError::Listen { address, source };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(fail)?;
        let listener = runtime.block_on(TcpListener::bind(address)).map_err(fail)?;
        let bound = listener.local_addr().map_err(fail)?;
        let token = token.map(|token| blake3::hash(token.as_bytes()));
        let site = Arc::new(Site { metrics, health, token });
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("metrics-http".to_owned()).spawn(move || {
            runtime.block_on(accept(listener, site, &stopped));
            // A volume that counts its segments must not hold us.
            runtime.shutdown_background();
        });
        let thread = Mutex::new(Some(thread.map_err(fail)?));
        Ok(Self { address: bound, stop, thread })
    }

    /// Where it is served.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.notify_one();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread that serves metrics panicked");
        }
    }
}

async fn accept(listener: TcpListener, site: Arc<Site>, stop: &Notify) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = tokio::select! {
            () = stop.notified() => return,
            permit = Arc::clone(&room).acquire_owned() => permit,
        };
        let Ok(permit) = permit else { return };
        let stream = tokio::select! {
            () = stop.notified() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a client of the metrics could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let site = Arc::clone(&site);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let site = Arc::clone(&site);
                async move { Ok::<_, Infallible>(answer(&request, site).await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_MAX, served).await {
                tracing::debug!(%error, "a client of the metrics");
            }
            drop(permit);
        });
    }
}

async fn answer<B>(request: &Request<B>, site: Arc<Site>) -> Response<Full<Bytes>> {
    if let Some(token) = &site.token {
        let given = request.headers().get(header::AUTHORIZATION);
        let given = given.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        if given.map(blake3::hash).as_ref() != Some(token) {
            let mut refused = text(StatusCode::UNAUTHORIZED, "a bearer token is needed\n");
            let how = header::HeaderValue::from_static("Bearer");
            refused.headers_mut().insert(header::WWW_AUTHENTICATE, how);
            return refused;
        }
    }
    let path = request.uri().path();
    if !["/metrics", "/healthz"].contains(&path) {
        return text(StatusCode::NOT_FOUND, "there are /metrics and /healthz\n");
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    if path == "/metrics" {
        // Volumes may have to count their segments.
        let rendered = tokio::task::spawn_blocking(move || site.metrics.prometheus_text()).await;
        return match rendered {
            Ok(body) => text(StatusCode::OK, body),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "collecting the figures failed\n"),
        };
    }
    match tokio::task::spawn_blocking(move || (site.health)()).await {
        Ok(Ok(())) => text(StatusCode::OK, "ok\n"),
        Ok(Err(why)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the check failed\n"),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    // Prometheus' text format.
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    fn ask(server: &Server, request: &str) -> String {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n").unwrap();
        stream.write_all(b"\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn start(token: Option<&str>, health: Health) -> Server {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Server::start(address, token, Metrics::new(), health).unwrap()
    }

    #[test]
    fn figures_and_health_are_served_and_nothing_else() {
        let server = start(None, Arc::new(|| Err("a volume is gone".to_owned())));
        let metrics = ask(&server, "GET /metrics");
        assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
        assert!(metrics.contains("version=0.0.4") && metrics.contains("librorum_build_info{"));
        let health = ask(&server, "GET /healthz");
        assert!(health.starts_with("HTTP/1.1 503") && health.contains("a volume is gone"));
        assert!(ask(&server, "GET /").starts_with("HTTP/1.1 404"));
        assert!(ask(&server, "POST /metrics").starts_with("HTTP/1.1 405"));
        let address = server.address();
        drop(server);
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn a_token_is_asked_for_and_needed_beyond_loopback() {
        let server = start(Some("s3cret"), Arc::new(|| Ok(())));
        assert!(ask(&server, "GET /healthz").starts_with("HTTP/1.1 401"));
        let with = |token: &str| {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            let head = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}");
            stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        assert!(with("s3cret").starts_with("HTTP/1.1 200"));
        assert!(with("s3cres").starts_with("HTTP/1.1 401"));
        let open = SocketAddr::from(([0, 0, 0, 0], 0));
        let refused = Server::start(open, None, Metrics::new(), Arc::new(|| Ok(())));
        assert!(matches!(refused, Err(HttpError::Open(_))));
    }
}
