-- gpuacct's usage records in ClickHouse, over the table that the exporter `clickhouse` of the
-- OpenTelemetry Collector's distribution "contrib" writes (deploy/collector/records.yaml).
--
--   clickhouse-client --multiquery < clickhouse.sql
--   SELECT * FROM gpuacct.bill WHERE hour >= '2026-11-01' AND hour < '2026-12-01';
--
-- It expects the exporter's default schema, with attributes as maps, in `default.otel_logs`. If the table
-- has another place, change it in the view gpuacct.received, and nowhere else.
--
-- A record may be in the table several times, and in several revisions. The greatest revision of each
-- id counts, once. Times are nanoseconds, energy is millijoules, memory over time is byte-seconds: all
-- are integers, and sums of them are exact.

CREATE DATABASE IF NOT EXISTS gpuacct;

-- Every record as it was received.
CREATE OR REPLACE VIEW gpuacct.received AS
SELECT
    LogAttributes['gpuacct.record.id'] AS id,
    toInt64(LogAttributes['gpuacct.record.revision']) AS revision,
    LogAttributes['gpuacct.record.kind'] AS kind,
    toDateTime(Timestamp, 'UTC') AS hour,
    ResourceAttributes AS resource,
    LogAttributes AS attributes
FROM default.otel_logs
WHERE ScopeName = 'gpuacct' AND LogAttributes['gpuacct.record.id'] != '';

-- Each record once, in its last revision.
CREATE OR REPLACE VIEW gpuacct.records AS
SELECT id, revision, kind, hour, resource, attributes
FROM gpuacct.received
ORDER BY revision DESC
LIMIT 1 BY hour, id;

-- What each account used of a GPU in an hour.
CREATE OR REPLACE VIEW gpuacct.used AS
SELECT
    id,
    hour,
    if(resource['k8s.node.name'] != '', resource['k8s.node.name'], resource['host.name']) AS node,
    resource['k8s.cluster.name'] AS cluster,
    attributes['hw.id'] AS gpu,
    attributes['hw.model'] AS model,
    attributes['gpuacct.mig_profile'] AS mig_profile,
    attributes['gpuacct.owner.kind'] AS owner_kind,
    attributes['gpuacct.attribution'] AS attribution,
    attributes['k8s.namespace.name'] AS namespace,
    attributes['k8s.pod.name'] AS pod,
    attributes['k8s.pod.uid'] AS pod_uid,
    if(
        attributes['k8s.container.name'] != '',
        attributes['k8s.container.name'],
        attributes['container.name']
    ) AS container,
    attributes['container.id'] AS container_id,
    attributes['container.image.name'] AS image,
    -- The exporter writes a list as JSON.
    JSONExtractString(attributes['container.image.tags'], 1) AS image_tag,
    attributes['gpuacct.unit'] AS unit,
    toInt128(attributes['gpuacct.busy_ns']) AS busy_ns,
    toInt128(attributes['gpuacct.held_ns']) AS held_ns,
    toInt128(attributes['gpuacct.allocated_ns']) AS allocated_ns,
    toInt128(attributes['gpuacct.allocated_share_ns']) AS allocated_share_ns,
    -- An engine that was not used has no attribute.
    toInt128OrZero(attributes['gpuacct.engine.memory_ns']) AS engine_memory_ns,
    toInt128OrZero(attributes['gpuacct.engine.encoder_ns']) AS engine_encoder_ns,
    toInt128OrZero(attributes['gpuacct.engine.decoder_ns']) AS engine_decoder_ns,
    toInt128OrZero(attributes['gpuacct.engine.jpeg_ns']) AS engine_jpeg_ns,
    toInt128OrZero(attributes['gpuacct.engine.ofa_ns']) AS engine_ofa_ns,
    toInt128(attributes['gpuacct.memory_byte_seconds']) AS memory_byte_seconds,
    toInt128(attributes['gpuacct.energy_mj']) AS energy_mj,
    -- Labels of pods (publish.pod_labels): labels['team'].
    mapApply(
        (key, value) -> (substring(key, 15), value),
        mapFilter((key, value) -> startsWith(key, 'k8s.pod.label.'), attributes)
    ) AS labels
FROM gpuacct.records
WHERE kind = 'account';

-- What became of each GPU's hour. elapsed_ns = busy_ns + idle_ns + unobserved_ns, and busy_ns is that of
-- all accounts of the GPU and unattributed_ns.
CREATE OR REPLACE VIEW gpuacct.gpus AS
SELECT
    id,
    hour,
    if(resource['k8s.node.name'] != '', resource['k8s.node.name'], resource['host.name']) AS node,
    resource['k8s.cluster.name'] AS cluster,
    attributes['hw.id'] AS gpu,
    attributes['hw.model'] AS model,
    attributes['gpuacct.mig_profile'] AS mig_profile,
    toInt128(attributes['gpuacct.elapsed_ns']) AS elapsed_ns,
    toInt128(attributes['gpuacct.busy_ns']) AS busy_ns,
    toInt128(attributes['gpuacct.idle_ns']) AS idle_ns,
    toInt128(attributes['gpuacct.unobserved_ns']) AS unobserved_ns,
    toInt128(attributes['gpuacct.unattributed_ns']) AS unattributed_ns,
    toInt128(attributes['gpuacct.energy_mj']) AS energy_mj,
    toInt128(attributes['gpuacct.energy_idle_mj']) AS energy_idle_mj,
    toInt128(attributes['gpuacct.energy_unattributed_mj']) AS energy_unattributed_mj,
    attributes
FROM gpuacct.records
WHERE kind = 'gpu';

-- Time of each GPU's hour that no account used: idle, unobserved by reason, unattributed by reason.
CREATE OR REPLACE VIEW gpuacct.unused AS
SELECT hour, node, cluster, gpu, model, mig_profile, 'idle' AS state, '' AS reason, idle_ns AS time_ns
FROM gpuacct.gpus
WHERE idle_ns > 0
UNION ALL
SELECT
    hour, node, cluster, gpu, model, mig_profile,
    extract(key, '^gpuacct\\.(unobserved|unattributed)\\.') AS state,
    extract(key, '^gpuacct\\.(?:unobserved|unattributed)\\.(.*)_ns$') AS reason,
    toInt128(value) AS time_ns
FROM gpuacct.gpus
ARRAY JOIN mapKeys(attributes) AS key, mapValues(attributes) AS value
WHERE match(key, '^gpuacct\\.(unobserved|unattributed)\\.(.*)_ns$');

-- The bill: who used how much of which model in each hour. The host's work and time without an owner
-- have rows of their own, so that busy_ns adds up to that of the GPUs. Sum over the hours that you want.
CREATE OR REPLACE VIEW gpuacct.bill AS
SELECT
    hour,
    cluster,
    model,
    mig_profile,
    multiIf(owner_kind = 'host', '(host)', used.namespace = '', '(none)', used.namespace) AS namespace,
    sum(used.busy_ns) AS busy_ns,
    sum(used.allocated_share_ns) AS allocated_share_ns,
    sum(used.memory_byte_seconds) AS memory_byte_seconds,
    sum(used.energy_mj) AS energy_mj
FROM gpuacct.used AS used
GROUP BY 1, 2, 3, 4, 5
UNION ALL
SELECT
    hour,
    cluster,
    model,
    mig_profile,
    '(unattributed)' AS namespace,
    sum(gpus.unattributed_ns) AS busy_ns,
    toInt128(0) AS allocated_share_ns,
    toInt128(0) AS memory_byte_seconds,
    sum(gpus.energy_unattributed_mj) AS energy_mj
FROM gpuacct.gpus AS gpus
WHERE gpus.unattributed_ns > 0 OR gpus.energy_unattributed_mj > 0
GROUP BY 1, 2, 3, 4;
