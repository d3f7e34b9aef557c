# The project on a CPU, with every package that ./run.sh uses:
#
#   docker build -t essence-kd .
#   docker run --rm -it -v "$PWD/exp:/opt/essence-kd/exp" essence-kd                     # ./run.sh --size tiny
#   docker run --rm -it -v "$PWD/exp:/opt/essence-kd/exp" essence-kd ./run.sh            # the main job
#   docker run --rm -it -v /my/kaldi/data:/data:ro essence-kd bash                       # the tools: essence --help
#
# tests/shell/test_container.py takes the same steps in a clean folder with Debian.
FROM debian:bookworm-slim AS system
RUN apt-get update && \
    apt-get install -y --no-install-recommends ca-certificates gcc git libc6-dev python3 python3-venv && \
    rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 essence

FROM system
# k2 decodes in an environment of its own of up to 3.5 GB; without it (--build-arg K2=false) kaldi-decoder decodes.
ARG K2=true
COPY --chown=essence . /opt/essence-kd
RUN chown essence /opt/essence-kd
USER essence
WORKDIR /opt/essence-kd
RUN local/setup_env.sh --k2 $K2 && rm -rf ~/.cache/pip
RUN mkdir -p data exp && local/bin/essence doctor
ENV PATH=/opt/essence-kd/local/bin:$PATH
CMD ["./run.sh", "--size", "tiny"]
