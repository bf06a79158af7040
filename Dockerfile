# A server for one model: see docs/serving.md. Several servers are several containers.
FROM python:3.11-slim

# Where torch comes from: its CPU build, unless another index is named (.../whl/cu130 for a GPU).
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /src
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY flipped_kd flipped_kd
# constraints.txt pins every version; of torch it takes the build that the index above has.
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -c constraints.txt ".[serve,search]" \
    && useradd --create-home --uid 10001 serve

USER 10001
WORKDIR /home/serve
# The model is a folder: mount it read-only. Nothing is fetched while it runs.
ENV HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 PYTHONUNBUFFERED=1
VOLUME /model
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Further options are those of `flipped-kd serve`. A token is needed: FLIPPED_KD_TOKEN, or --token-file.
ENTRYPOINT ["flipped-kd", "serve", "/model", "--host", "0.0.0.0", "--port", "8000"]
