# Debian's prometheus without what the package recommends (a user, fonts, an init script): the program alone.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE} AS package
RUN apt-get update -qq && cd /tmp && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb /tmp/prometheus

FROM ${BASE_IMAGE}
COPY --from=package /tmp/prometheus/usr/bin/prometheus /usr/local/bin/prometheus
USER 65534:65534
ENTRYPOINT ["prometheus"]
