//! Asks a runtime for one container, and for the sandbox that it is in.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use gpuacct_proto::cri::runtime_service_client::RuntimeServiceClient;
use gpuacct_proto::cri::{
    Container, ContainerFilter, ContainerStatus, ContainerStatusRequest, ListContainersRequest,
    ListPodSandboxRequest, PodSandbox, PodSandboxFilter,
};
use tonic::transport::Channel;

use super::facts::{Facts, Sandbox, sandbox_identity};
use crate::core::input::ContainerIdentity;
use crate::core::model::ContainerId;
use crate::sources::identity::elements::{Malformed, decode, elements};
use crate::sources::identity::grpc::{self, GrpcError, MAX_ONE};
use crate::sources::identity::{Counters, clean_labels};

pub(super) const LIST_CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";
pub(super) const LIST_POD_SANDBOX: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
/// The field of either list that has its elements.
pub(super) const LISTED: usize = 1;
/// Elements of one list that are decoded.
pub(super) const MAX_LISTED: usize = 16_384;

/// What a runtime said of one container.
pub(super) enum Answer {
    Found(Box<ContainerIdentity>),
    /// It does not know it, or what it said cannot be used; a label value says which.
    Missing(&'static str),
}

pub(super) type Client = RuntimeServiceClient<Channel>;

/// A connection to a runtime.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) channel: Channel,
    pub(super) client: Client,
}

impl Connection {
    pub(super) fn new(channel: Channel) -> Self {
        Self {
            client: Client::new(channel.clone()).max_decoding_message_size(MAX_ONE),
            channel,
        }
    }
}

/// Questions about one container.
pub(super) struct Lookup {
    pub(super) connection: Connection,
    pub(super) limit: Duration,
    pub(super) counters: Arc<Counters>,
    pub(super) sandboxes: Arc<HashMap<String, Arc<Sandbox>>>,
}

impl Lookup {
    pub(super) async fn describe(&self, id: &ContainerId) -> Result<Answer, GrpcError> {
        let found = |identity| Ok(Answer::Found(Box::new(identity)));
        let Some(container) = self.container(id).await? else {
            return match self.sandbox(id.as_str()).await? {
                Some(sandbox) => found(sandbox_identity(id, &sandbox, &self.counters)),
                None => Ok(Answer::Missing("not_found")),
            };
        };
        let sandbox = match self.sandboxes.get(&container.pod_sandbox_id) {
            Some(known) => Some(Arc::clone(known)),
            None => self.sandbox(&container.pod_sandbox_id).await?,
        };
        let facts = Facts::listed(&container);
        if facts.image().is_some() {
            return found(facts.identity(id, sandbox.as_deref(), &self.counters));
        }
        let Some(status) = self.status(id).await? else {
            return found(facts.identity(id, sandbox.as_deref(), &self.counters));
        };
        let facts = Facts::alone(&status);
        found(facts.identity(id, sandbox.as_deref(), &self.counters))
    }

    /// The container of exactly this id.
    async fn container(&self, id: &ContainerId) -> Result<Option<Container>, GrpcError> {
        let request = ListContainersRequest {
            filter: Some(ContainerFilter {
                id: id.as_str().to_owned(),
            }),
        };
        let call = "list_containers";
        let request = grpc::ask(&self.connection.channel, LIST_CONTAINERS, request, MAX_ONE);
        let reply = grpc::call(call, self.limit, &self.counters, request).await?;
        let found = self.first(&reply, |container: &Container| container.id == id.as_str());
        found.map_err(|source| GrpcError::Malformed { call, source })
    }

    async fn sandbox(&self, id: &str) -> Result<Option<Arc<Sandbox>>, GrpcError> {
        let request = ListPodSandboxRequest {
            filter: Some(PodSandboxFilter { id: id.to_owned() }),
        };
        let call = "list_pod_sandbox";
        let request = grpc::ask(&self.connection.channel, LIST_POD_SANDBOX, request, MAX_ONE);
        let reply = grpc::call(call, self.limit, &self.counters, request).await?;
        let found = self.first(&reply, |sandbox: &PodSandbox| sandbox.id == id);
        let found = found.map_err(|source| GrpcError::Malformed { call, source })?;
        Ok(found.map(|sandbox| {
            Arc::new(Sandbox {
                metadata: sandbox.metadata,
                labels: clean_labels(&sandbox.labels, &self.counters),
            })
        }))
    }

    /// The first element of a list that `is` the one.
    fn first<T: prost::Message + Default>(
        &self,
        list: &[u8],
        is: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, Malformed> {
        for element in elements(list, LISTED).take(MAX_LISTED) {
            if let Some(found) = decode::<T>(element?, &self.counters)?
                && is(&found)
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// What the runtime says of this container alone; nothing if it says it of another one.
    async fn status(&self, id: &ContainerId) -> Result<Option<ContainerStatus>, GrpcError> {
        let mut client = self.connection.client.clone();
        let request = client.container_status(ContainerStatusRequest {
            container_id: id.as_str().to_owned(),
            verbose: false,
        });
        let reply = grpc::call("container_status", self.limit, &self.counters, request).await?;
        Ok(reply.status.filter(|status| status.id == id.as_str()))
    }
}
