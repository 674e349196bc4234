"""Train a bundle on a Ray cluster; takes the flags of `lesioncam train`.

export RAY_AUTH_MODE=token   # if the cluster asks for a token; it stands in ~/.ray/auth_token
ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/train.py --images s3://bucket/images --labels s3://bucket/labels.csv \
        --bundle s3://bucket/model --weights VGG16_Weights.IMAGENET1K_V1 --workers 4
"""

from lesioncam.cli import run

if __name__ == "__main__":
    run(verb="train", prog="python jobs/train.py", json_logs=True)
