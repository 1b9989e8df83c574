//! The signals of OTLP that are sent over the agent's own transport: which messages they have, and which
//! service takes them.

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// A signal of OTLP.
pub(super) trait Signal {
    /// What is sent.
    type Request: prost::Message;
    /// What is answered.
    type Response: prost::Message + Default;
    /// Its client over gRPC.
    type Client: std::fmt::Debug;
    /// Its name at the end of a URL, `/v1/NAME`.
    const NAME: &'static str;

    /// A client, whose messages are compressed or not.
    fn client(channel: Channel, is_compressed: bool) -> Self::Client;

    /// Sends a message over gRPC.
    async fn export(
        client: &mut Self::Client,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Response>, Status>;

    /// What an answer says of the parts of the message that were refused.
    fn accepted(response: Self::Response) -> Accepted;
}

/// The receiver took the message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Accepted {
    /// Points or log records of it that it refused for good.
    pub(super) rejected: u64,
    /// Its words on that; they may also be a warning, with nothing refused.
    pub(super) message: String,
}

impl Accepted {
    /// An answer with a `partial_success`, in which a receiver may say that it refused less than nothing.
    pub(super) fn with(rejected: i64, message: String) -> Self {
        Self {
            rejected: u64::try_from(rejected).unwrap_or(0),
            message,
        }
    }
}

/// Metrics: the books.
#[derive(Debug)]
pub(super) struct Metrics;

impl Signal for Metrics {
    type Request = ExportMetricsServiceRequest;
    type Response = ExportMetricsServiceResponse;
    type Client = MetricsServiceClient<Channel>;
    const NAME: &'static str = "metrics";

    fn client(channel: Channel, is_compressed: bool) -> Self::Client {
        let client = MetricsServiceClient::new(channel);
        match is_compressed {
            true => client.send_compressed(CompressionEncoding::Gzip),
            false => client,
        }
    }

    async fn export(
        client: &mut Self::Client,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Response>, Status> {
        client.export(request).await
    }

    fn accepted(response: Self::Response) -> Accepted {
        let partial = response.partial_success;
        partial.map_or_else(Accepted::default, |partial| {
            Accepted::with(partial.rejected_data_points, partial.error_message)
        })
    }
}

/// Logs: the usage records.
#[derive(Debug)]
pub(super) struct Logs;

impl Signal for Logs {
    type Request = ExportLogsServiceRequest;
    type Response = ExportLogsServiceResponse;
    type Client = LogsServiceClient<Channel>;
    const NAME: &'static str = "logs";

    fn client(channel: Channel, is_compressed: bool) -> Self::Client {
        let client = LogsServiceClient::new(channel);
        match is_compressed {
            true => client.send_compressed(CompressionEncoding::Gzip),
            false => client,
        }
    }

    async fn export(
        client: &mut Self::Client,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Response>, Status> {
        client.export(request).await
    }

    fn accepted(response: Self::Response) -> Accepted {
        let partial = response.partial_success;
        partial.map_or_else(Accepted::default, |partial| {
            Accepted::with(partial.rejected_log_records, partial.error_message)
        })
    }
}
