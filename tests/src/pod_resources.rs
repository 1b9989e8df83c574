//! A kubelet's `PodResources` API that answers what it was told to, over the published interface.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::runtime::Runtime;
use tonic::{Request, Response, Status};

use crate::proto::pod_resources as api;
use crate::proto::pod_resources::pod_resources_lister_server::{
    PodResourcesLister, PodResourcesListerServer,
};

/// What a kubelet does about `Get`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Get {
    /// Kubernetes before 1.27.
    Unimplemented,
    /// Later ones whose feature gate is off.
    Disabled,
    /// Asked for one pod, it answers.
    Offered,
}

/// A kubelet that answers what it was told to.
#[derive(Clone, Debug)]
pub struct Kubelet {
    /// What it lists.
    pods: Arc<Mutex<Vec<api::PodResources>>>,
    get: Get,
    /// Whether it answers nothing.
    pub hangs: Arc<AtomicBool>,
    /// How often everything was asked for.
    pub lists: Arc<AtomicU64>,
    /// How often one pod was asked for.
    pub gets: Arc<AtomicU64>,
}

impl Kubelet {
    /// One with these pods.
    #[must_use]
    pub fn new(get: Get, pods: Vec<api::PodResources>) -> Self {
        Self {
            pods: Arc::new(Mutex::new(pods)),
            get,
            hangs: Arc::default(),
            lists: Arc::default(),
            gets: Arc::default(),
        }
    }

    /// Has it list these from now on.
    ///
    /// # Panics
    /// If a test panicked while it set them.
    pub fn set(&self, pods: Vec<api::PodResources>) {
        *self.pods.lock().expect("no test has panicked") = pods;
    }

    /// What it lists.
    ///
    /// # Panics
    /// As [`Kubelet::set`].
    #[must_use]
    pub fn pods(&self) -> Vec<api::PodResources> {
        self.pods.lock().expect("no test has panicked").clone()
    }

    async fn hang(&self) {
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    /// Serves it on a socket, for as long as the runtime returned lives.
    ///
    /// # Panics
    /// If the socket cannot be made.
    #[must_use]
    pub fn serve(&self, socket: &Path) -> Runtime {
        let runtime = Runtime::new().expect("a runtime");
        let listener = runtime
            .block_on(async { tokio::net::UnixListener::bind(socket) })
            .expect("a socket");
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let service = PodResourcesListerServer::new(self.clone());
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        runtime
    }
}

#[tonic::async_trait]
impl PodResourcesLister for Kubelet {
    async fn list(
        &self,
        _: Request<api::ListPodResourcesRequest>,
    ) -> Result<Response<api::ListPodResourcesResponse>, Status> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        self.hang().await;
        Ok(Response::new(api::ListPodResourcesResponse {
            pod_resources: self.pods(),
        }))
    }

    async fn get(
        &self,
        request: Request<api::GetPodResourcesRequest>,
    ) -> Result<Response<api::GetPodResourcesResponse>, Status> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.hang().await;
        match self.get {
            Get::Unimplemented => return Err(Status::unimplemented("unknown method Get")),
            Get::Disabled => return Err(Status::unknown("PodResources API Get method disabled")),
            Get::Offered => {}
        }
        let api::GetPodResourcesRequest {
            pod_name,
            pod_namespace,
        } = request.into_inner();
        let mut pods = self.pods().into_iter();
        match pods.find(|pod| pod.name == pod_name && pod.namespace == pod_namespace) {
            Some(pod) => Ok(Response::new(api::GetPodResourcesResponse {
                pod_resources: Some(pod),
            })),
            None => Err(Status::unknown(format!("pod {pod_name} not found"))),
        }
    }
}

/// A pod of one container, with devices of one plugin.
#[must_use]
pub fn pod(name: &str, resource: &str, ids: &[&str]) -> api::PodResources {
    api::PodResources {
        name: name.to_owned(),
        namespace: "ml".to_owned(),
        containers: vec![api::ContainerResources {
            name: "trainer".to_owned(),
            devices: vec![api::ContainerDevices {
                resource_name: resource.to_owned(),
                device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            }],
            dynamic_resources: vec![],
        }],
    }
}
