"""LeRobot: any reward model that vlp_gym names, as a reward model of LeRobot's type "vlp".

```python
import vlp_gym.integrations.lerobot
from lerobot.rewards import make_reward_model, make_reward_model_config

model = make_reward_model(make_reward_model_config("vlp", model="vlp-compact"))
```

LeRobot looks for reward models in no package by itself. Its commands import this one where they are told to:
``--reward_model.discover_packages_path=vlp_gym.integrations.lerobot``, which takes a folder.
"""

from vlp_gym.integrations.lerobot.reward import VLPConfig as VLPConfig
from vlp_gym.integrations.lerobot.reward import VLPRewardModel as VLPRewardModel
