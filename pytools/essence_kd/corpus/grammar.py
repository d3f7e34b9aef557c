"""The language of the mini corpus: small talk on the telephone, written for this project.

``TOPICS`` gives each topic its things, deeds, places and opinions; ``GENERAL`` gives what every topic shares: turns,
claims, questions, numbers, names. A symbol is written ``<symbol>``, an optional part ``[part]`` (there half of the
time), and alternatives are separated by ``|`` or a new line. A deed is written ``walk/walking/walked the dog`` and
used through ``<act>``, ``<acting>`` and ``<did>``; as often these give a verb of ``GENERAL`` with any object.
"""
from __future__ import annotations

import random
import re
from typing import Sequence

TOPICS = {
    "pets": """
thing: a dog | a cat | a puppy | a kitten | a parrot | a hamster | a rabbit | a horse | a goldfish | a turtle
things: dogs | cats | puppies | kittens | birds | animals | rabbits | horses | fish | vets
deed: walk/walking/walked the dog | feed/feeding/fed the cats | brush/brushing/brushed the horse
  clean/cleaning/cleaned the cage | train/training/trained the puppy | take/taking/took him to the vet
  bury/burying/buried bones in the yard | chase/chasing/chased the squirrels | bark/barking/barked at the mailman
  sleep/sleeping/slept on the couch | wash/washing/washed the dog in the tub
adj: friendly | stubborn | playful | lazy | loud | loyal | hungry | fat
place: the kennel | the barn | the park | the back yard | the animal shelter
own: she's part collie and part shepherd | he weighs about <number> pounds | he just loves to chew on my shoes
  the vet said she has fleas | our cat had <small> kittens under the porch | they shed hair all over the furniture
  he got hit by a truck and lost a leg | i'm allergic to cats so we can't have any
  we named him <name> after my uncle
""",
    "weather": """
thing: a storm | a hurricane | a tornado | an umbrella | a blizzard | a heat wave | a snow shovel | a cold front
  a flood
things: storms | clouds | winters | summers | forecasts | puddles | icicles | temperatures
deed: shovel/shoveling/shoveled the snow | watch/watching/watched the sky | stay/staying/stayed inside
  sit/sitting/sat in the shade | wear/wearing/wore a heavy coat | scrape/scraping/scraped ice off the windshield
  listen/listening/listened to the thunder | sweat/sweating/sweated all day | freeze/freezing/froze out there
adj: humid | windy | chilly | foggy | sunny | miserable | freezing | cloudy | damp | mild
place: the coast | the desert | the mountains | the valley | the gulf | the lake
own: it got down to <number> degrees below zero | it's been raining for <small> days straight
  the wind blew our fence down | we had about <small> inches of snow | it was a hundred and <small> in the shade
  the sun came out this morning | i'd rather have spring than fall | the lightning knocked out our power
  they say it may drizzle on <day>
""",
    "cars": """
thing: a car | a truck | a van | a convertible | a motorcycle | a new engine | a flat tire | a spare tire
  a good mechanic | a station wagon
things: cars | trucks | brakes | tires | mechanics | engines | drivers | highways | speed limits | foreign cars
deed: change/changing/changed the oil | drive/driving/drove to work | fix/fixing/fixed the brakes
  buy/buying/bought a used car | trade/trading/traded it in | tow/towing/towed it home
  wreck/wrecking/wrecked the truck | replace/replacing/replaced the battery | lease/leasing/leased a van
  rent/renting/rented a car | park/parking/parked on the street
adj: reliable | expensive | rusty | comfortable | cheap | noisy | roomy | sporty
place: the garage | the dealer | the junk yard | the gas station | the freeway
own: it has over a hundred and <number> thousand miles on it | the transmission went out on me
  it gets about <number> miles to the gallon | i paid <price> for it back in <year>
  the insurance is about <price> a year | he got a ticket for speeding | the air conditioner quit working
  somebody backed into my bumper | it won't start when it's wet
""",
    "cooking": """
thing: a casserole | a roast | a salad | a cake | a recipe | a microwave | a good steak | a sandwich | a bowl of soup
  an apple pie
things: vegetables | spices | recipes | noodles | potatoes | onions | leftovers | desserts | mushrooms | shrimp
deed: cook/cooking/cooked dinner | bake/baking/baked bread | grill/grilling/grilled chicken | fry/frying/fried fish
  chop/chopping/chopped onions | make/making/made spaghetti | eat/eating/ate out | order/ordering/ordered a pizza
  try/trying/tried a new recipe | boil/boiling/boiled the rice | burn/burning/burned the toast
  set/setting/set the table
adj: spicy | delicious | greasy | healthy | sweet | tasty | bland | salty | fresh
place: the kitchen | the chinese place downtown | the mexican restaurant | the bakery | the cafeteria
  the grocery store
own: you put in <small> cups of flour and a pinch of salt | let it simmer for about <number> minutes
  i add a lot of garlic and pepper | bake it at <small> hundred degrees | i got the recipe from my <relative>
  we eat seafood about once a week | the sauce is butter and lemon juice | i can't stand the taste of liver
  we barbecue ribs on <day>
""",
    "family": """
thing: a big family | a baby | a wedding | a family reunion | a birthday party | a baby sitter | a day care
  a divorce | a nap
things: kids | babies | cousins | parents | grandparents | teenagers | families | marriages | toys | diapers
deed: raise/raising/raised the kids | visit/visiting/visited my <relative> | change/changing/changed diapers
  read/reading/read to the children | call/calling/called my mother | marry/marrying/married young
  hold/holding/held the baby | spoil/spoiling/spoiled the grandchildren | argue/arguing/argued with my <relative>
  stay/staying/stayed home with the kids | move/moving/moved back in with my parents
adj: close | strict | patient | grown | spoiled | proud | tired | lonely | married
place: my grandmother's house | the nursery | the farm | the church | the hospital
own: i have <small> brothers and <small> sisters | my oldest is <number> and my youngest is <small>
  she's due in <month> | we've been married <number> years now | my <relative> lives in <city>
  he takes after his father | both of my parents are retired | the twins will be <small> in <month>
  my <relative> had surgery last <season>
""",
    "jobs": """
thing: a job | a raise | a boss | a career | an office | a meeting | a paycheck | an interview | a pension
  a contract
things: jobs | managers | engineers | meetings | benefits | unions | customers | secretaries | salaries | layoffs
deed: work/working/worked the night shift | quit/quitting/quit my job | hire/hiring/hired new people
  type/typing/typed letters | answer/answering/answered the phone | look/looking/looked for work
  manage/managing/managed the store | travel/traveling/traveled for the company | retire/retiring/retired early
  commute/commuting/commuted downtown | sell/selling/sold insurance | teach/teaching/taught math
adj: stressful | boring | flexible | busy | permanent | temporary | professional | ambitious
place: the office | the factory | the plant | the bank | the warehouse | headquarters | the laboratory
own: i work for a small electronics company | they laid off about <number> people in <month>
  we get <small> weeks of vacation | i start at <small> in the morning | my boss is pretty easy to get along with
  i've been there about <small> years | the pay isn't great but the benefits are good | i'm a nurse at the hospital
  they want me to transfer to <city>
""",
    "movies": """
thing: a movie | a comedy | a western | a mystery | an old movie | a good plot | a sad ending | a sequel | a video
  an actor
things: movies | comedies | musicals | actors | cartoons | tickets | directors | special effects | tapes
  love stories
deed: see/seeing/saw a movie | rent/renting/rented a video | go/going/went to the theater
  watch/watching/watched a western | cry/crying/cried at the end | fall/falling/fell asleep
  laugh/laughing/laughed out loud | eat/eating/ate popcorn | wait/waiting/waited in line
  skip/skipping/skipped the sequel | record/recording/recorded it off cable
adj: funny | violent | scary | romantic | silly | dull | exciting | realistic
place: the theater | the drive in | the video store | the mall
own: the one about the lawyer was really good | it won <small> awards that year
  the acting was terrible but i liked the music | i cried all the way through it
  tickets are up to <small> dollars now | the special effects were amazing | we saw it in <city> with my <relative>
  the book was much better than the film | kids shouldn't see that one
""",
    "music": """
thing: a guitar | a piano | a band | a concert | a record | a stereo | a song | a choir | a drum | a violin
things: bands | songs | guitars | concerts | records | lyrics | singers | drums | albums | radio stations
deed: play/playing/played the piano | sing/singing/sang in the choir | listen/listening/listened to jazz
  dance/dancing/danced all night | practice/practicing/practiced the violin | tune/tuning/tuned the guitar
  turn/turning/turned the radio down | collect/collecting/collected records | hear/hearing/heard the symphony
  write/writing/wrote songs | learn/learning/learned to read music
adj: classical | loud | mellow | catchy | modern | famous | talented | soft
place: the concert hall | the music store | the club downtown | the symphony | the stage
own: i grew up on country and western | my <relative> plays the drums in a band | they played for <small> hours
  i took lessons for <small> years | rap just sounds like noise to me | we saw them in concert in <year>
  i like a little bit of everything really | the blues came out of the south | i can't carry a tune
""",
    "sports": """
thing: a game | a football team | a coach | a season ticket | a home run | a touchdown | a bat | a championship
  a tennis racket | a golf club
things: teams | players | coaches | games | fans | quarterbacks | playoffs | referees | athletes | golfers
deed: play/playing/played golf | watch/watching/watched the game | win/winning/won the series
  lose/losing/lost the playoffs | throw/throwing/threw the ball | coach/coaching/coached soccer
  catch/catching/caught a pass | swim/swimming/swam laps | run/running/ran <small> miles
  bowl/bowling/bowled on <day> | hit/hitting/hit a home run | root/rooting/rooted for <city>
adj: competitive | athletic | overpaid | talented | injured | quick | tough | aggressive
place: the stadium | the gym | the golf course | the tennis court | the pool | the ball park
own: they beat us <number> to <small> | <city> traded their best pitcher | they were <small> and <small> last season
  he threw for <small> hundred yards | the quarterback hurt his knee | basketball moves too fast for me
  they finished in last place again | i ran track in high school | the score was tied in the <ordinal> inning
""",
    "travel": """
thing: a trip | a cruise | a hotel | a tent | a suitcase | a camera | a passport | a cabin | a beach house | a map
things: vacations | beaches | airports | hotels | flights | tourists | museums | campgrounds | islands | waterfalls
deed: fly/flying/flew to <city> | go/going/went camping | pack/packing/packed the suitcase
  hike/hiking/hiked in the mountains | take/taking/took pictures | rent/renting/rented a cabin
  cross/crossing/crossed the border | get/getting/got lost | book/booking/booked a flight | lie/lying/lay on the beach
  tour/touring/toured the castle | pitch/pitching/pitched the tent
adj: beautiful | crowded | relaxing | scenic | foreign | quiet | peaceful | gorgeous
place: the beach | the national park | the canyon | the island | europe | canada | mexico | the airport
  the rocky mountains
own: the flight took about <small> hours | we stayed for <small> nights in a little hotel
  the water was so clear and blue | they lost our luggage in <city> | we drove <number> hundred miles in one day
  it's about a <small> hour drive from <city> | the scenery was out of this world | we hiked to the bottom and back
  our plane left at <small> thirty
""",
    "house": """
thing: a house | an apartment | a fence | a deck | a new roof | a lawn mower | a flower bed | a mortgage | a ladder
  a basement
things: roses | tomatoes | weeds | neighbors | bedrooms | carpets | curtains | windows | bathrooms | tools
deed: paint/painting/painted the bedroom | mow/mowing/mowed the lawn | plant/planting/planted tomatoes
  pull/pulling/pulled weeds | build/building/built a deck | hang/hanging/hung wallpaper | fix/fixing/fixed the roof
  rake/raking/raked the leaves | sand/sanding/sanded the floor | trim/trimming/trimmed the hedge
  insulate/insulating/insulated the attic | water/watering/watered the grass
adj: roomy | dirty | green | brick | wooden | empty | huge | tiny | ugly
place: the garden | the attic | the basement | the front yard | the hardware store | the porch
own: it took <small> gallons of paint | we have <small> bedrooms and <small> bathrooms
  the roof started leaking in <month> | we bought it for <price> in <year> | the soil here is nothing but clay
  the bugs ate all my roses | i put down new tile in the hall | the plumber wanted <price> an hour
  our neighbors have a big oak tree
""",
    "computers": """
thing: a computer | a printer | a keyboard | a program | a hard drive | a screen | a modem | a game | a file | a mouse
things: computers | programs | printers | files | disks | games | machines | viruses | passwords | spreadsheets
deed: write/writing/wrote a program | type/typing/typed a paper | print/printing/printed a letter
  copy/copying/copied the disk | save/saving/saved the file | erase/erasing/erased the drive
  balance/balancing/balanced my checkbook | plug/plugging/plugged it in | install/installing/installed more memory
  lose/losing/lost all my files | send/sending/sent a message
adj: slow | powerful | complicated | obsolete | useful | confusing | handy | fancy
place: the lab | the computer store | the library | the den | the help desk
own: it has <small> megabytes of memory | i use it mostly for word processing | it crashed <small> times in <month>
  i bought mine for <price> | the kids play games on it | my <relative> is a programmer in <city>
  the screen went blank on me | i still don't trust those machines | they're obsolete in <small> years
""",
    "school": """
thing: a degree | a teacher | a scholarship | a class | a test | a college | a grade | a loan | an essay
  a school bus
things: teachers | students | classes | grades | exams | colleges | textbooks | languages | principals | lessons
deed: study/studying/studied history | take/taking/took a night class | learn/learning/learned spanish
  fail/failing/failed the test | graduate/graduating/graduated from college | teach/teaching/taught <ordinal> grade
  borrow/borrowing/borrowed money for tuition | drop/dropping/dropped out | do/doing/did homework
  pass/passing/passed chemistry | grade/grading/graded papers
adj: strict | bright | gifted | difficult | private | public | smart | overcrowded
place: the university | high school | kindergarten | the campus | the classroom | the dormitory
own: there were <number> kids in one class | tuition went up to <price> | she's in the <ordinal> grade now
  i majored in biology and then switched to business | teachers don't get paid enough | they cut music and art
  my <relative> got a scholarship to a school in <city> | he'll graduate in <month>
  some kids can't even read or spell
""",
    "health": """
thing: a doctor | a diet | a checkup | a gym | a bicycle | a headache | a treadmill | a dentist | a bad back
  a prescription
things: doctors | vitamins | hospitals | pills | calories | dentists | cigarettes | muscles | allergies | weights
deed: lose/losing/lost weight | lift/lifting/lifted weights | jog/jogging/jogged around the block
  quit/quitting/quit smoking | ride/riding/rode my bike | see/seeing/saw the dentist | break/breaking/broke my ankle
  catch/catching/caught a cold | take/taking/took aspirin | walk/walking/walked <small> miles
  stretch/stretching/stretched my legs
adj: sick | healthy | sore | overweight | painful | nervous | strong | dizzy
place: the gym | the clinic | the emergency room | the drug store | the track
own: i lost <number> pounds in <small> months | my blood pressure was too high
  the doctor charged me <price> for <number> minutes | i work out <small> days a week | i hurt my shoulder and my neck
  my <relative> had a heart attack in <month> | insurance doesn't cover the dentist | i try to eat less sugar and fat
  they gave me a shot in the arm
""",
    "money": """
thing: a credit card | a budget | a loan | a savings account | a tax cut | a house payment | a bill | a bargain
  a coupon | an investment
things: taxes | bills | stocks | credit cards | banks | prices | interest rates | coupons | debts | politicians
deed: pay/paying/paid the bills | save/saving/saved money | spend/spending/spent too much
  invest/investing/invested in stocks | borrow/borrowing/borrowed <price> | charge/charging/charged it
  cut/cutting/cut coupons | owe/owing/owed the bank | figure/figuring/figured my taxes | cash/cashing/cashed the check
  budget/budgeting/budgeted every penny
adj: broke | rich | careful | greedy | wasteful | fair | ridiculous | wealthy
place: the bank | washington | wall street | the credit union | city hall
own: the rate is about <small> percent | we pay <price> a month for rent | they take <number> percent out of my check
  sales tax here is <small> percent | i cut up all of my credit cards | the national debt just keeps growing
  we're saving for college | i got back <price> in <month> | congress can't balance a budget either
""",
    "news": """
thing: a newspaper | a headline | a reporter | a magazine | a tv set | an election | a war | a court case | a vote
  a law
things: newspapers | reporters | magazines | headlines | politicians | elections | laws | judges | lawyers
  commercials
deed: read/reading/read the paper | watch/watching/watched the news | vote/voting/voted for the governor
  follow/following/followed the trial | write/writing/wrote to my senator | believe/believing/believed the story
  hear/hearing/heard about the war | switch/switching/switched channels | protest/protesting/protested the law
adj: political | depressing | biased | local | honest | corrupt | conservative | liberal | guilty
place: the capital | the court house | the senate | russia | germany | japan | the middle east
own: i get most of it from the radio driving home | they only show <number> seconds of each story
  the jury was out for <small> days | the president was on at <small> last night
  only <number> percent of people vote | i take the <city> paper on <day> | every channel has the same story
  they never print good news | the mayor got caught stealing money
""",
    "crime": """
thing: a gun | an alarm | a burglar | a prison | a police officer | a lock | a gang | a jury | a big dog
  a neighborhood watch
things: guns | gangs | prisons | drugs | criminals | police | locks | judges | burglars | alarms
deed: lock/locking/locked the doors | call/calling/called the police | steal/stealing/stole the stereo
  carry/carrying/carried a gun | rob/robbing/robbed the bank | leave/leaving/left the lights on
  arrest/arresting/arrested <small> people | break/breaking/broke the window | testify/testifying/testified in court
  walk/walking/walked alone at night
adj: dangerous | safe | innocent | guilty | scared | violent | serious | armed
place: the jail | the court | the bad part of town | the parking lot | our neighborhood
own: somebody broke in and took our tv | he got <number> years and only served <small>
  there were <number> murders in <city> last year | we put in an alarm that cost <price>
  the police got there in <small> minutes | drugs are behind most of it | they stole my purse out of the car
  i grew up where nobody locked a door | more prisons won't solve it
""",
    "books": """
thing: a novel | a mystery | a library card | a best seller | a magazine | a biography | a paperback | a cookbook
  a poem | a dictionary
things: books | novels | mysteries | authors | characters | chapters | libraries | poems | stories | biographies
deed: read/reading/read a novel | finish/finishing/finished the chapter | borrow/borrowing/borrowed books
  join/joining/joined a book club | write/writing/wrote a story | return/returning/returned it late
  recommend/recommending/recommended a mystery | start/starting/started a biography | buy/buying/bought paperbacks
adj: thick | interesting | fascinating | technical | fictional | depressing | well written | short
place: the library | the book store | my bed | the bus | the airplane
own: it's about <small> hundred pages long | i read for <number> minutes before bed | the author lives in <city>
  i couldn't put it down until <small> in the morning | science fiction is what my <relative> reads
  it came out in <year> | the main character is a spy | i like history and true stories
  i owed the library <small> dollars
""",
    "shopping": """
thing: a dress | a suit | a pair of shoes | a sweater | a catalog | a jacket | a sale | a watch | a refund | a hat
things: clothes | shoes | stores | dresses | malls | jeans | sales | catalogs | brands | presents
deed: shop/shopping/shopped at the mall | try/trying/tried on shoes | return/returning/returned a sweater
  sew/sewing/sewed a dress | iron/ironing/ironed my shirts | wear/wearing/wore a tie
  order/ordering/ordered from a catalog | wrap/wrapping/wrapped presents | find/finding/found a bargain
  compare/comparing/compared prices | stand/standing/stood in line
adj: fashionable | casual | overpriced | pretty | tight | comfortable | ugly | cheap | colorful
place: the mall | the outlet | the department store | the flea market | the shoe store
own: it was marked down to <price> | the sleeves were too long | i wear a size <small>
  it shrank the first time i washed it | the zipper broke in <small> days
  they wanted <price> for a plain white shirt | i bought <small> pairs for <price>
  i do all my christmas shopping in <month> | wool makes me itch
""",
    "transit": """
thing: a bus | a train | a subway | a bicycle | a taxi | a traffic jam | a car pool | a bridge | a pothole
  a stop light
things: buses | trains | roads | bridges | trucks | bicycles | potholes | traffic lights | sidewalks | parking spaces
deed: ride/riding/rode the bus | catch/catching/caught the train | miss/missing/missed the bus
  sit/sitting/sat in traffic | cross/crossing/crossed the bridge | walk/walking/walked to work
  join/joining/joined a car pool | take/taking/took the subway | pay/paying/paid the toll | honk/honking/honked at me
  widen/widening/widened the road
adj: crowded | convenient | late | slow | polluted | narrow | dangerous | empty
place: the station | the bus stop | downtown | the suburbs | the highway | the interstate | the tunnel
own: it takes me <number> minutes to get to work | the bus comes every <number> minutes
  the fare went up to <small> dollars | they've been working on interstate <number> since <year>
  recycling and car pools would help the smog | exit <number> was closed | i live <number> miles from downtown
  traffic is terrible after <small> | a truck turned over by the bridge
""",
}

GENERAL = """
small: two | three | four | five | six | seven | eight | nine | ten
digit: zero | oh | one | two | three | four | five | six | seven | eight | nine
teen: eleven | twelve | thirteen | fourteen | fifteen | sixteen | seventeen | eighteen | nineteen
tens: twenty | thirty | forty | fifty | sixty | seventy | eighty | ninety
unit: one | two | three | four | five | six | seven | eight | nine
number: <teen> | <tens> | <tens> <unit> | <tens> <unit>
year: nineteen <tens> <unit> | nineteen <tens> | nineteen eighty <unit> | sixty <unit> | the seventies | the eighties
price: <small> dollars | <number> dollars | <small> hundred dollars | <small> thousand
  <small> hundred and <number> dollars | a hundred bucks | <number> bucks | <small> fifty
ordinal: first | second | third | fourth | fifth | sixth | seventh | eighth | ninth | tenth
day: monday | tuesday | wednesday | thursday | friday | saturday | sunday
month: january | february | march | april | may | june | july | august | september | october | november | december
season: winter | spring | summer | fall | week | month | year | night | weekend
city: boston | dallas | houston | chicago | denver | atlanta | seattle | miami | detroit | new york | california
  texas | florida | ohio | georgia | virginia | new jersey | colorado | michigan | pittsburgh | oregon | tennessee
name: john | mary | susan | robert | linda | karen | michael | david | nancy | jim | bob | carol | steve | donna | tom
  judy | peter | jane | bill | kathy | george | ellen | frank | laura | jack | anna | harry | ruth | larry | helen
relative: mother | father | brother | sister | uncle | aunt | wife | husband | son | daughter | cousin | grandmother
  grandfather | roommate | neighbor | boss | friend | best friend | nephew | niece | mom | dad
degree: really | pretty | very | so | just | kind of | sort of | a little | awfully | extremely | too | not that
freq: every day | every <day> | once in a while | a lot | all the time | on <day> | in the <season>
  at least once a month | twice a week | about <small> times a year | most of the time | when i can
  as much as possible
often: usually | never | always | hardly ever | still | sometimes | probably | almost never | really
when: last <season> | last <day> | yesterday | the other day | this morning | in <month> | back in <year>
  a long time ago | a few years ago | <small> weeks ago | right after christmas | the day before that
  when i lived in <city> | around <small> thirty
with: with my <relative> | by myself | with the kids | with some friends | with <name> | with <name> and <name>
where: at <place> | near <place> | over by <place> | in <city> | around here | out in the country
  down the street from <place>
people: people | most people | a lot of people | folks | young people | kids today | women | men | some guys
verb: buy/buying/bought | sell/selling/sold | find/finding/found | fix/fixing/fixed | bring/bringing/brought
  lose/losing/lost | see/seeing/saw | use/using/used | get/getting/got | need/needing/needed | keep/keeping/kept
  move/moving/moved | carry/carrying/carried | hide/hiding/hid | check/checking/checked | choose/choosing/chose
  share/sharing/shared | watch/watching/watched | draw/drawing/drew | borrow/borrowing/borrowed
  clean/cleaning/cleaned | count/counting/counted | forget/forgetting/forgot | give up/giving up/gave up
  look at/looking at/looked at | talk about/talking about/talked about | worry about/worrying about/worried about
  pay for/paying for/paid for | hate/hating/hated | throw away/throwing away/threw away
  hear about/hearing about/heard about | show them/showing them/showed them | take/taking/took | leave/leaving/left
object: <thing> | <things> | the <noun> | that <noun> | my <noun> | some <things> | those <things> | <small> <things>
  our <noun> | <adj> <things> | the <adj> <noun> | a lot of <things> | the <noun> and the <noun>
  <things> and <things> | her <noun> | his <noun>
feeling: happy | surprised | glad | worried | upset | sorry | crazy | excited | disappointed | mad | amazed
start: well | yeah | so | uh | um | oh | and | but | you know | i mean | well uh | and uh | but uh | so uh | yeah but
  oh well | well you know | and then | um well | see | actually | of course | let's see | no | right | okay | oh yeah
  yeah i guess
tail: you know | or something | and things like that | i guess | i think | so | and all that | to me | anyway | though
  i suppose | and everything | or whatever | too | and stuff like that | right now | these days | for some reason
  if you know what i mean
think: i think | i guess | i don't think | i feel like | i know | it seems like | i suppose | i figure | i believe
  i bet | i heard | i hope | i'm sure | they say | my <relative> says | my <relative> thinks
claim: i <often> <act> | i <often> <act> <freq> | we <did> <when> | we <did> <where> | my <relative> <did> <when>
  my <relative> and i <did> <where> <when> | i used to <act> <freq> | i used to <act> when i was <number>
  i'd rather <act> than <act> | i'd love to <act> <with> | i don't like <acting> at all
  i really enjoy <acting> <with> | i like <acting> better than <acting> | i'm thinking about <acting> this <season>
  i've been <acting> since <when> | i was <acting> <where> <when> | we had to <act> <with>
  we ended up <acting> until about <small> | we didn't <act> because it was <degree> <adj>
  my <relative> wants to <act> | my <relative> is always <acting> | my <relative> got tired of <acting>
  <people> don't <act> any more | <people> ought to <act> more | <people> spend too much time <acting>
  <things> are <degree> <adj> | <things> are <degree> <adj> <where> | <things> aren't as <adj> as they used to be
  i've never seen <things> like that | there are more <things> <where> than there used to be
  you see <things> <where> | we have <small> <things> now | we've got <thing> and <thing> | we bought <thing> <when>
  i'd like to have <thing> | i need <thing> and maybe <thing> | i got <thing> for <price>
  my <relative> gave us <thing> for christmas | it's hard to find <thing> | it was <degree> <adj>
  it was <degree> <adj> <where> | it's <degree> <adj> to <act> | it's not <adj> to <act> <where>
  it cost me <price> to <act> | they want <price> just for <thing> | it took us <small> hours to <act>
  the <ordinal> time we <did> it was <degree> <adj> | my <ordinal> one was <degree> <adj> | there's <thing> <where>
  we went to <place> <when> | we went over to <place> <with> | i spent <small> days at <place>
  i met <name> at <place> | i was <degree> <feeling> when we <did> | i was <feeling> about <things>
  i get <feeling> when <people> <act> | i've got a friend named <name> who <did> <when>
  <name> told me about <things> <where> | <name> lives near <place> in <city> | if i had the time i'd <act> <freq>
  if you <act> you have to <act> too | before we <did> we <did> | when i <did> my <relative> <did>
  my number is <digit> <digit> <digit> <digit> | the area code there is <digit> <digit> <digit> | that's why we <did>
  that's what i like about <things> | the only thing is <things> are <degree> <adj> | what i do is <act> <freq>
  <own> | <own> | <own> | <own> | <own> | <own> | <own> | <own> | <own> | <own> | <own> | <own>
say: <claim> | <claim> | <start> <claim> | <start> <claim> | <start> <claim> | <claim> <tail> | <start> <claim> <tail>
  <start> <think> <claim> | <think> <claim> | <start> <think> <claim> <tail> | <claim> and <claim>
  <claim> but <claim> | <start> <claim> and <claim> | <claim> because <claim> | <start> <claim> so <claim>
  <think> <claim> but <claim> | <think> <claim> | <start> <claim> | <claim>
ask: do you <act> <freq> | do you ever <act> | do you have <thing> | have you got <thing> or <thing>
  did you <act> <when> | have you been to <place> | how many <things> do you have | how often do you <act>
  what do you think about <things> | what kind of <things> do you like | do you think <things> are <adj>
  are <things> <adj> <where> | was it <degree> <adj> | where do you <act> | why would you <act>
  who do you <act> with | when did you <act> | how much did <thing> cost | would you rather <act> or <act>
  don't you think <people> should <act> | is it <adj> <where> | how do you feel about <acting> | what about <things>
  did your <relative> <act> too | is that near <place> | does your <relative> like <acting>
  so you <often> <act> <freq> | you <did> <where> didn't you | what was it like <acting> <where>
question: <ask> | <start> <ask> | <start> <ask> | so <ask> | <ask> or do you <act> | <claim> what about you
  <claim> how about you
react: yeah | uh-huh | right | oh really | um-hum | yeah yeah | oh yeah | exactly | sure | oh okay | huh | wow
  that's true | i see | that's right | no kidding | oh my goodness | that's great | that's too bad | i know
  i know it | oh no | is that right | definitely | i agree | that's funny | oh i see | that's good | sounds like it
  i don't blame you | same here | me too | hm | mhm
backchannel: <react> | <react> | <react> | <react> <react>
reply: <react> <claim> | <react> <claim> | <react> <claim> <tail> | <react> <react> <claim> | <react> <think> <claim>
  <react> my <relative> <did> too | <react> that must be <degree> <adj> | <react> i've never tried <acting>
  <react> we <did> once and it was <degree> <adj> | <react> i'd be <degree> <feeling>
hello: hi this is <name> in <city> | hello my name is <name> | hi <name> i'm calling from <city>
  hi i'm <name> how are you doing | hello this is <name> and i'm from <city> | hi <name> i'm <name> nice to meet you
  hi there i'm <name> from <city> how's it going
topic: so they want us to talk about <things> | okay the topic is <things>
  well i guess we're supposed to discuss <things> | do you want to start | so tell me about <things> <where>
  okay let's talk about <things> and <things>
bye: well it was nice talking to you <name> | okay i enjoyed it take care | well i guess that's about it
  have a good <season> bye bye | all right <name> good luck with <thing> | thanks for calling bye
  i better go my <relative> is waiting | okay bye <name> talk to you later | well i have to <act> now so bye
  i think our <number> minutes are up | it's been fun talking about <things>
"""

FILLERS = ("uh", "um", "you know", "like", "i mean")


def _parse(text: str) -> dict[str, list[str]]:
    rules: dict[str, list[str]] = {}
    name = ""
    for line in text.strip().splitlines():
        if not line.startswith(" "):
            name, _, line = line.partition(":")
        rules.setdefault(name, []).extend(alt.strip() for alt in line.split("|"))
    return rules


class Grammar:
    """Draws sentences. All randomness comes from the ``random.Random`` that is passed in.

    stray: probability that a thing, a deed, a place ... is taken from another of the topics in use, which makes the
    next word harder to foresee.
    """

    def __init__(self, stray: float = 0.0) -> None:
        self.stray = stray
        self.general = _parse(GENERAL)
        forms = ("act", "acting", "did")
        for verb in self.general.pop("verb"):
            for form, word in zip(forms, verb.split("/")):
                self.general.setdefault(f"verb_{form}", []).append(word)
        self.topics = {topic: _parse(text) for topic, text in TOPICS.items()}
        for rules in self.topics.values():
            for deed in rules.pop("deed"):
                head, _, rest = deed.partition(" ")
                for form, verb in zip(forms, head.split("/")):
                    rules.setdefault(form, []).append(f"{verb} {rest}".strip())
            for form in forms:  # as often a verb with any object
                rules[form].extend([f"<verb_{form}> <object>"] * len(rules[form]))
            rules["noun"] = [re.sub("^(an?|the) ", "", thing) for thing in rules["thing"]]

    def sentence(self, rng: random.Random, topic: str, symbol: str, fillers: float = 0.0, repeats: float = 0.0,
                 others: Sequence[str] = ()) -> str:
        """One sentence: lower-case words separated by single spaces.

        symbol: say, question, reply, backchannel, hello, topic or bye. fillers: probability of a filler before a
        word; repeats: probability that the sentence starts over once ("i i think", "we had we had to"). others: topics
        from which strays come.
        """
        words = self._expand(rng, topic, others, f"<{symbol}>").split()
        if len(words) > 3 and rng.random() < repeats:
            n = rng.choice((1, 1, 2))
            words = words[:n] + ([rng.choice(("uh", "um"))] if rng.random() < 0.3 else []) + words
        out: list[str] = []
        for i, word in enumerate(words):
            if 0 < i and rng.random() < fillers:
                out.extend(rng.choice(FILLERS).split())
            out.append(word)
        return " ".join(out)

    def _expand(self, rng: random.Random, topic: str, others: Sequence[str], text: str) -> str:
        def one(match: re.Match) -> str:
            if match.group(2):
                return self._expand(rng, topic, others, match.group(2)) if rng.random() < 0.5 else ""
            symbol = match.group(1)
            alternatives = self.general.get(symbol)
            if alternatives is None:
                stray = others and rng.random() < self.stray
                alternatives = self.topics[rng.choice(others) if stray else topic][symbol]
            return self._expand(rng, topic, others, rng.choice(alternatives))

        return re.sub(r"<(\w+)>|\[([^\]]+)\]", one, text)
